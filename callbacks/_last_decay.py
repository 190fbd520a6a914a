"""The epoch at which the learning rate of a run decays for the last time."""

from __future__ import annotations

import copy
import warnings

import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, StepLR

GIVE = "give switch_epoch"
"""The advice that all errors of this module end with."""


def last_decay(trainer: pl.Trainer) -> tuple[int, int]:
    """The epoch of the last decay within ``max_epochs``, and the first epoch of the stage before it, at the old rate.

    The schedule of the run, whichever it is, is stepped through all epochs on a copy. Its last decrease must be a step:
    one of torch's step schedules, or one after two or more epochs at the same rate. A schedule that decays smoothly
    (cosine, exponential) has no stage "before the last decay", and none is guessed.

    Returns:
        start of the stage before the last decay, epoch of the last decay.

    Raises:
        ValueError: without a schedule, for one stepped by batches or by a metric, for one without a decay within
            ``max_epochs``, and for one whose last decrease is not a step.
    """
    scheduler = _scheduler(trainer)
    rates = _rates(scheduler, _epochs(trainer), trainer.lr_scheduler_configs[0].frequency)
    name, epochs = type(scheduler).__name__, len(rates)
    decays = []
    for epoch in range(1, epochs):
        if _decreases(rates[epoch - 1], rates[epoch]):
            decays.append(epoch)
    if not decays:
        raise ValueError(f"{name} has no learning-rate decay in {epochs} epochs: {GIVE}, or change the schedule")
    decay = start = decays[-1]
    while start > 0 and rates[start - 1] == rates[decay - 1]:
        start -= 1
    if decay - start < 2 and not isinstance(scheduler, MultiStepLR | StepLR):
        raise ValueError(
            f"{name} does not decay in steps: before its last decrease in {epochs} epochs, at epoch {decay}, "
            f"the rate is not constant for two epochs: {GIVE}"
        )
    return start, decay


def _decreases(before: list[float], after: list[float]) -> bool:
    """Whether the learning rate of any parameter group does."""
    return any(b < a for a, b in zip(before, after, strict=True))


def _epochs(trainer: pl.Trainer) -> int:
    if trainer.max_epochs is None or trainer.max_epochs < 0:
        raise ValueError(f"without trainer.max_epochs the last learning-rate decay is unknown: set it, or {GIVE}")
    return trainer.max_epochs


def _scheduler(trainer: pl.Trainer) -> LRScheduler:
    if not trainer.lr_scheduler_configs:
        raise ValueError(f"without a learning-rate schedule there is no last decay: {GIVE}")
    config = trainer.lr_scheduler_configs[0]
    name = type(config.scheduler).__name__
    if config.reduce_on_plateau:
        raise ValueError(f"it is not known beforehand when {name} decays: {GIVE}")
    if config.interval != "epoch":
        raise ValueError(f"{name} is stepped every batch, not every epoch: {GIVE}")
    return config.scheduler


def _rates(scheduler: LRScheduler, epochs: int, frequency: int) -> list[list[float]]:
    """The learning rates of the parameter groups in each epoch, from a copy of the fresh schedule, without weights."""
    optimizer = scheduler.optimizer
    stand_in = torch.optim.SGD([{**group, "params": [torch.zeros(1)]} for group in optimizer.param_groups], lr=0.0)
    scheduler = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this optimizer makes no steps
        for epoch in range(epochs):
            rates.append([float(group["lr"]) for group in stand_in.param_groups])
            if (epoch + 1) % frequency == 0:
                scheduler.step()
    return rates

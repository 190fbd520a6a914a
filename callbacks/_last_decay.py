"""When a run's learning rate decays for the last time, found by asking its schedule."""

from __future__ import annotations

import copy
import warnings

import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR, StepLR

GIVE = "give switch_epoch"


def last_decay(trainer: pl.Trainer) -> tuple[int, int]:
    """The epoch of the last decay inside ``max_epochs``, and before it the first epoch of the stage at the old rate.

    The schedule of the run, whichever it is, is stepped through all epochs on a copy. Its last fall must be a step:
    one of torch's step schedules, or one that follows two or more epochs at the same rate. In a schedule that falls
    smoothly (cosine, exponential) there is no stage "before the last decay", and we do not guess one.

    Returns:
        start of the stage before the last decay, epoch of the last decay.

    Raises:
        ValueError: without a schedule, for one stepped by batches or by a metric, for one without a decay inside
            ``max_epochs``, and for one whose last fall is no step.
    """
    rates = _rates(_scheduler(trainer), _epochs(trainer), trainer.lr_scheduler_configs[0].frequency)
    falls = [e for e in range(1, len(rates)) if any(b < a for a, b in zip(rates[e - 1], rates[e], strict=True))]
    name, epochs = type(_scheduler(trainer)).__name__, len(rates)
    if not falls:
        raise ValueError(f"{name} has no learning-rate decay in {epochs} epochs: {GIVE}, or change the schedule")
    decay = start = falls[-1]
    while start > 0 and rates[start - 1] == rates[decay - 1]:
        start -= 1
    if decay - start < 2 and not isinstance(_scheduler(trainer), MultiStepLR | StepLR):
        raise ValueError(
            f"{name} does not decay in steps: its last fall in {epochs} epochs, at epoch {decay}, "
            f"does not follow two epochs at one rate: {GIVE}"
        )
    return start, decay


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
        raise ValueError(f"when {name} decays is not known beforehand: {GIVE}")
    if config.interval != "epoch":
        raise ValueError(f"{name} is stepped every batch, not every epoch: {GIVE}")
    return config.scheduler


def _rates(scheduler: LRScheduler, epochs: int, frequency: int) -> list[list[float]]:
    """The learning rates of the parameter groups in each epoch, from a copy of a fresh schedule without the weights."""
    optimizer = scheduler.optimizer
    stand_in = torch.optim.SGD([{**group, "params": [torch.zeros(1)]} for group in optimizer.param_groups], lr=0.0)
    scheduler = copy.deepcopy(scheduler, {id(optimizer): stand_in})
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer makes no steps
        for epoch in range(epochs):
            rates.append([float(group["lr"]) for group in stand_in.param_groups])
            if (epoch + 1) % frequency == 0:
                scheduler.step()
    return rates

"""Workarounds for Lightning that belong to the model, so that a plain `pytorch_lightning.Trainer` trains it correctly.

All others are in `app.cli.lightning_compat`. The tests in tests/app/models/test_lightning_compat.py fail once Lightning
is fixed, and the workaround can go.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.cli import ReduceLROnPlateau
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

NEVER = 2**62
"""A frequency with which Lightning never steps a schedule."""


def batch_size_to_log(labels: Tensor) -> int:
    """The size of a batch, as a float, for `self.log(..., sync_dist=True)`.

    Lightning 2.6 averages the accumulated sizes of the processes and rounds an integer down, so that means over
    batches of unequal sizes come out too large (https://github.com/Lightning-AI/pytorch-lightning/issues/21859). It
    adds up floats as well as integers; its type hint says int.
    """
    return float(len(labels))  # type: ignore[return-value]


def schedule_configuration(scheduler: LRScheduler) -> dict[str, Any]:
    """The ``lr_scheduler`` entry of `configure_optimizers` for a schedule that is stepped once an epoch.

    A plateau schedule is left to `step_plateau_schedules`.
    """
    configuration: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
    if isinstance(scheduler, ReduceLROnPlateau):
        configuration |= {"monitor": scheduler.monitor, "frequency": NEVER}
    return configuration


def step_plateau_schedules(trainer: pl.Trainer) -> None:
    """Step the plateau schedules; the model calls it in `on_train_epoch_end`, before the checkpoint is written.

    Lightning 2.6 steps them after the epoch's checkpoint, and leaves the step out when that checkpoint is resumed
    (https://github.com/Lightning-AI/pytorch-lightning/issues/14699, closed that way): a resumed run would know one
    epoch less than an uninterrupted one.

    Raises:
        ValueError: for a metric that is not measured.
    """
    if not trainer.is_last_batch:  # The run ends mid-epoch: the schedule is stepped when the epoch is complete.
        return
    for configuration in trainer.lr_scheduler_configs:
        scheduler = configuration.scheduler
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(_measured(trainer, scheduler.monitor))


def _measured(trainer: pl.Trainer, metric: str) -> Tensor:
    value = trainer.callback_metrics.get(metric)
    if value is None:
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(f"lr_scheduler.monitor {metric} is not measured; there are {known}")
    return value

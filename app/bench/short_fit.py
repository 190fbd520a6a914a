"""Timed fits, and short fits of a network on one batch for benchmarks that compare networks.

Shapes: B batch, H x W pixels.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from app.bench.step_timer import PARTS, StepTimer
from app.cli.lightning_compat import ignore_unfounded_warnings, interrupted_by_user

Batch = tuple[Tensor, Tensor]
"""Images ``(B, 3, H, W)`` and labels ``(B,)``."""

WARM_UP = 1
"""Steps before the timed one. A fit allocates the state of its optimizer in the first."""


class Repeated:
    """A loader that yields the same batch forever."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        return itertools.repeat(self.batch)


class ShortFit:
    """Trains a network for two steps per call, with ``Trainer.fit``, and times the second.

    Each call is a fit of its own, so that the networks of a comparison can take turns.

    Args:
        model: the network, which is trained.
        images: ``(B, 3, H, W)``, on the device to train on.
        labels: ``(B,)``.
        treatments: callbacks of the training; their time before the optimizer step is a part of its own.
    """

    def __init__(
        self, model: pl.LightningModule, images: Tensor, labels: Tensor, treatments: Sequence[pl.Callback] = ()
    ) -> None:
        self.model, self.images, self.labels = model.train(), images, labels
        self.treatments = list(treatments)

    def __call__(self) -> list[float]:
        """Seconds of each of `PARTS`."""
        timer, device = StepTimer(), self.images.device
        with quiet():
            trainer = pl.Trainer(
                accelerator=device.type,
                devices=1 if device.index is None else [device.index],
                callbacks=list(self.treatments),
                max_steps=WARM_UP + 1,
                profiler=timer,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            timed_fit(trainer, self.model, timer, self.treatments, Repeated((self.images, self.labels)))
        return [timer.steps[-1][part] for part in PARTS]


def timed_fit(
    trainer: pl.Trainer,
    model: pl.LightningModule,
    timer: StepTimer,
    treatments: Sequence[pl.Callback],
    data: Any,
) -> None:
    """Run ``trainer.fit`` while a timer, which is the trainer's profiler, watches the model.

    Args:
        trainer: whose profiler is the timer.
        model: the network.
        timer: gets the times of the steps.
        treatments: the callbacks whose time is a part of the step.
        data: a loader, or a data module.
    """
    try:
        with timer.watching(model, treatments, trainer.strategy.root_device):
            trainer.fit(model, data)
    except SystemExit as end:
        # Lightning 2.6 exits at Ctrl+C, without a message where its messages are off.
        if interrupted_by_user(end):
            raise KeyboardInterrupt from end
        raise


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Lightning's messages about devices and the end of the run out of a table."""
    messages = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = messages.level
    messages.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # A benchmark may leave a GPU unused, and has no data to validate with.
            warnings.filterwarnings("ignore", message="GPU available but not used")
            warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`")
            ignore_unfounded_warnings()
            yield
    finally:
        messages.setLevel(level)

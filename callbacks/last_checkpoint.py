"""Saving ``last.ckpt``, the checkpoint that a run resumes from after it was killed or stopped."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn

from ._accumulation import awaits_more_batches


class LastCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` at the end of every epoch, every few steps, and on request (`StopOnSignal`).

    ``--ckpt_path last`` resumes after the saved step, with the next image of the epoch. ``train/top1`` of that epoch is
    then the mean over the rest of it. A run that is killed loses what it trained after the last save.

    Mid-epoch it saves only if the data module can resume there, which it declares by an attribute
    ``resumes_inside_epochs = True``, and never between the batches of an accumulated gradient.

    Args:
        every_n_steps: steps between two saves within an epoch; null: none, so that a killed run repeats its epoch.

    Raises:
        ValueError: if the period is not positive.
    """

    def __init__(self, every_n_steps: int | None = 1000) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"last.every_n_steps must be at least 1, got {every_n_steps}")
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_n_steps = every_n_steps
        self._requested = False

    def request_save(self) -> None:
        """Save at the end of the training step in progress."""
        self._requested = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._requested = False
        if self.every_n_steps is not None and not _resumes_mid_epoch(trainer):
            rank_zero_warn("last.every_n_steps has no effect: this data module cannot resume mid-epoch")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if awaits_more_batches(trainer) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if batch_idx + 1 >= trainer.num_training_batches:
            return  # Lightning saves the end of an epoch, after its validation
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if (due or self._requested) and _resumes_mid_epoch(trainer):
            # ModelCheckpoint has no public method that saves to its own path (Lightning 2.6).
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))
        self._requested = False


def _resumes_mid_epoch(trainer: pl.Trainer) -> bool:
    if trainer.overfit_batches > 0:  # type: ignore[attr-defined]
        return False  # Lightning replaces the sampler of the data module by its own
    data = trainer.datamodule  # type: ignore[attr-defined]
    return getattr(data, "resumes_inside_epochs", False)

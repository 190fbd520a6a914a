"""The check that no checkpoint contains non-finite values."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from ._diagnosis import diverged_weight, first_non_finite


class FiniteCheckpoints(pl.Callback):
    """Stops a run before a checkpoint is overwritten with non-finite weights or statistics.

    Works with every LightningModule.

    Raises:
        FloatingPointError: on all processes, when a checkpoint is saved.
    """

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Weights are the same on every process, but statistics need not be.
        cause = diverged_weight(pl_module)
        if cause is None:
            buffer = first_non_finite(pl_module.named_buffers())
            if trainer.strategy.reduce_boolean_decision(buffer is not None, all=False):
                where = buffer or "of another process"
                cause = f"the statistics {where} contain non-finite values: check the images and the learning rate"
        if cause is not None:
            raise FloatingPointError(f"step {trainer.global_step}: {cause}; the previous checkpoint is kept")

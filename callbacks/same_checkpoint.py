"""The check that all processes of a run resume from the same checkpoint."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class SameCheckpoint(pl.Callback):
    """Stops a run whose processes resume from different checkpoints.

    Each process looks for ``--ckpt_path last`` by itself, because it builds its model from the checkpoint. Without a
    common file system, or if a node's view of it lags, one process would resume and another start anew. Nothing else
    would report that: all would train with the weights of the first process, but with their own epochs, layers and
    optimizer states.

    Works with every LightningModule.

    Raises:
        ValueError: on every process, before the first batch.
    """

    def __init__(self) -> None:
        self._step: int | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._step = checkpoint.get("global_step")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        own = None
        if trainer.ckpt_path is not None:
            own = f"step {self._step} in {trainer.ckpt_path}"
        first = trainer.strategy.broadcast(own)
        if not trainer.strategy.reduce_boolean_decision(own == first):
            raise ValueError(
                f"the processes found different checkpoints (the first {first}, process {trainer.global_rank} {own}): "
                "logger.save_dir must be on a file system that all nodes share"
            )

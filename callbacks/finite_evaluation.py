"""The check that validation and test give finite losses."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from ._diagnosis import diverged_weight
from ._layer_messages import LayerMessages
from ._reports import reports_of_ranks


class FiniteEvaluation(pl.Callback):
    """Stops a run at the end of a validation or test with a non-finite loss, before its checkpoint is saved.

    All processes come to that end together. The message names the spectral layers that met non-finite values, or a
    weight that contains them. Works with every LightningModule; a loss is checked if it is logged as ``val/loss`` or
    ``test/loss``.

    Raises:
        FloatingPointError: on all processes.
    """

    def __init__(self) -> None:
        self._messages = LayerMessages()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer, pl_module, "val/loss")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer, pl_module, "test/loss")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._messages.stop(pl_module)

    def _begin(self, pl_module: pl.LightningModule) -> None:
        self._messages.clear()
        self._messages.collect(pl_module)

    def _check(self, trainer: pl.Trainer, pl_module: pl.LightningModule, tag: str) -> None:
        self._messages.stop(pl_module)
        loss: Any = trainer.callback_metrics.get(tag, torch.zeros(()))  # the sanity check logs none
        message = self._messages.first
        if trainer.strategy.reduce_boolean_decision(message is not None or not loss.isfinite(), all=False):
            reasons = reports_of_ranks(trainer, diverged_weight(pl_module) or message)
            cause = "; ".join(reasons) or "check the images and the learning rate"
            raise FloatingPointError(f"{tag} is {loss.item()} after step {trainer.global_step}: {cause}")

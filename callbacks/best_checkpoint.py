"""The checkpoint of the best validation, ``best.ckpt``."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn

DEFAULT_METRIC = "val/top1"
"""The metric that the models of this program log."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which makes do without the metric of our models where a model has another.

    A model of the user's may log no ``val/top1``, where Lightning would end the run after its first validation. It is
    then kept as of the most recent validation instead, and a warning names the flag that chooses another metric. A
    metric that the user chose must exist.
    """

    @property
    def state_key(self) -> str:
        """The key of Lightning's class, so that checkpoints from before this class restore its state too."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        missing = self.monitor == DEFAULT_METRIC and DEFAULT_METRIC not in trainer.callback_metrics
        if missing and trainer.state.fn == "fit" and not trainer.sanity_checking:
            rank_zero_warn(
                f"{type(pl_module).__name__} logs no {DEFAULT_METRIC}: {self.filename}.ckpt is the most recent "
                "validation; choose a metric by --checkpoint.monitor NAME and --checkpoint.mode min or max"
            )
            self.monitor = None
        super().on_validation_end(trainer, pl_module)

"""The checkpoint of the best validation, ``best.ckpt``."""

from __future__ import annotations

import re
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn

DEFAULT_METRIC = "val/top1"
"""The metric that the models of this program log."""

LOWER_IS_BETTER = {"loss", "error", "err", "mse", "rmse", "mae", "nll", "perplexity"}
HIGHER_IS_BETTER = {"top1", "top5", "acc", "accuracy", "auc", "auroc", "f1", "precision", "recall", "iou", "map"}
"""Parts of the names of metrics."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's `ModelCheckpoint`, which knows of the usual metrics whether high or low values are better.

    It also makes do without the metric of our models where a model has another. For a user's model that logs no
    ``val/top1``, Lightning would end the run after its first validation. The checkpoint of the most recent validation
    is kept instead, and a warning names the flag that chooses another metric. A metric that the user chose must exist.

    Args:
        monitor: the metric.
        mode: min or max; null: as the name of the metric says, such as min for ``val/loss``.
        filename: name of the file; metrics may stand in it, as in ``{epoch}``.
        enable_version_counter: whether an existing file stays, and the next one is numbered.
        **options: those of `ModelCheckpoint`.

    Raises:
        ValueError: if the mode is not given, and the name of the metric does not say it.
    """

    def __init__(
        self,
        monitor: str | None = DEFAULT_METRIC,
        mode: str | None = None,
        filename: str | None = "best",
        enable_version_counter: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode or _mode_of(monitor),
            filename=filename,
            enable_version_counter=enable_version_counter,
            **options,
        )

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


def _mode_of(metric: str | None) -> str:
    """Whether high or low values of a metric are better, as its name says."""
    if metric is None:  # nothing is compared
        return "min"
    parts = set(re.split(r"[^a-z0-9]+", metric.lower()))
    lower, higher = bool(parts & LOWER_IS_BETTER), bool(parts & HIGHER_IS_BETTER)
    if lower == higher:
        raise ValueError(f"checkpoint.monitor {metric}: say which values are better, --checkpoint.mode min or max")
    return "min" if lower else "max"

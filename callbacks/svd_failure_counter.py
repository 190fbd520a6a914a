"""How often eigendecompositions failed, over all processes and the whole run.

Shapes: L spectral layers of the model, F counts of each.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from app.spectral import FailureCounts
from callbacks._spectral_layers import spectral_layers, suffix

COUNTS = tuple(field.name for field in fields(FailureCounts))
PARTS = ("training", "validation")

Totals = dict[str, dict[str, FailureCounts]]
"""Counts of all processes by part of the run and layer."""


class SVDFailureCounter(pl.Callback):
    """Counts the eigendecompositions that failed: matrices of all processes, since the run began (ECCV 2022, table 5).

    Logs at the end of each epoch, as totals so far and of training only, as the paper's "failure times":
    ``svd/failures`` (the sum of the next two), ``svd/not_converged``, ``svd/silently_wrong``, ``svd/solved_on_cpu``,
    ``svd/solved_by_iteration`` (what these are: `app.spectral.FailureCounts`), and ``svd/failures_epoch`` for the epoch
    alone. ``svd/validation_failures`` counts the decompositions of validation, without the sanity check before
    training. With more than one spectral layer these are sums over the layers, and each layer has its own tags besides,
    which end in ``/NAME``. The end of the run says it all in one line.

    A failure on one process costs no communication when it happens: the processes add up their counts when an epoch of
    training or validation ends, and when a checkpoint is saved, which keeps the totals.

    The same failures give the same totals on any number of processes. Where all decompose the same matrix, as in a
    decorrelated batch norm with ``synchronised`` statistics, it is counted once, and so are the batches that all share:
    in place of the sum stands the largest count of any process. Only ``silently_wrong``, a part of the failures,
    depends on the processes: each checks a sample of its own matrices.
    """

    def __init__(self) -> None:
        self.totals: Totals = {part: {} for part in PARTS}
        self._before_epoch: dict[str, FailureCounts] = {}
        self._layers: dict[str, Any] = {}
        self._mark = self._pending = torch.zeros(0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # what is known of an earlier run holds only where that run is gone on with
        if trainer.ckpt_path is None and trainer.current_epoch == 0:
            self.totals = {part: {} for part in PARTS}
        self._layers = {}  # the sanity check is not counted

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._layers = spectral_layers(pl_module)
        for part in PARTS:
            self.totals[part] = {name: self.totals[part].get(name, FailureCounts()) for name in self._layers}
        self._mark = self._now()
        self._pending = torch.zeros(len(PARTS), *self._mark.shape, dtype=torch.long)
        self._before_epoch = dict(self.totals["training"])
        if not self._layers:
            rank_zero_warn("SVDFailureCounter: the model has no layer with a covariance, nothing is counted")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before_epoch = dict(self.totals["training"])

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._layers:
            self._count("training")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._layers:
            self._count("validation")
            self._add_up(trainer, pl_module)  # before the checkpoint that validation leads to

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._layers:
            return
        self._count("training")
        self._add_up(trainer, pl_module)
        for tag, number in self._metrics().items():
            pl_module.log(tag, float(number), on_epoch=True, sync_dist=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._layers:
            rank_zero_info(self._summary())
        self._layers = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._layers:
            self._count("training")
            self._add_up(trainer, pl_module)
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {part: {name: counts.as_dict() for name, counts in self.totals[part].items()} for part in PARTS}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.totals = {
            part: {name: FailureCounts(**counts) for name, counts in state_dict[part].items()} for part in PARTS
        }

    def _now(self) -> Tensor:
        """What the layers of this process have counted since they were built, ``(L, F)``."""
        rows = [[getattr(layer.counts, name) for name in COUNTS] for layer in self._layers.values()]
        return torch.tensor(rows, dtype=torch.long)

    def _count(self, part: str) -> None:
        """Put down what has happened since the last call."""
        now = self._now()
        self._pending[PARTS.index(part)] += now - self._mark
        self._mark = now

    def _add_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add what all processes have put down to the totals."""
        gathered = trainer.strategy.all_gather(self._pending.to(pl_module.device))
        of_processes = gathered.reshape(-1, *self._pending.shape).cpu()
        self._pending = torch.zeros_like(self._pending)
        new = torch.where(self._shared(), of_processes.amax(0), of_processes.sum(0))
        for part, rows in zip(PARTS, new.tolist(), strict=True):
            for name, row in zip(self._layers, rows, strict=True):
                self.totals[part][name] = _sum([self.totals[part][name], FailureCounts(*row)])

    def _shared(self) -> Tensor:
        """Mask ``(L, F)`` of the counts that all processes have of the same batches or matrices."""
        same_matrices = [[getattr(layer, "synchronised", False)] for layer in self._layers.values()]
        return torch.tensor(same_matrices) | torch.tensor([name == "calls" for name in COUNTS])

    def _metrics(self) -> dict[str, int]:
        training, validation = (self.totals[part] for part in PARTS)
        metrics = _tags("", _sum(training.values()), _sum(validation.values()), _sum(self._before_epoch.values()))
        for name in self._layers if len(self._layers) > 1 else ():
            metrics |= _tags(suffix(name, self._layers), training[name], validation[name], self._before_epoch[name])
        return metrics

    def _summary(self) -> str:
        training, validation = (_sum(self.totals[part].values()) for part in PARTS)
        layers = [f"{name} {counts.failures}" for name, counts in self.totals["training"].items()]
        parts = [
            f"eigendecompositions that failed in training: {training.failures}",
            f"{training.not_converged} not converged, {training.silently_wrong} silently wrong",
            f"{training.solved_on_cpu} solved on the CPU, {training.solved_by_iteration} by iteration",
            f"{training.calls} batches decomposed, of all processes",
            f"in validation: {validation.failures}",
        ]
        return "; ".join(parts + ([f"by layer: {', '.join(layers)}"] if len(layers) > 1 else []))


def _sum(counts: Any) -> FailureCounts:
    counts = list(counts)
    return FailureCounts(**{name: sum(getattr(c, name) for c in counts) for name in COUNTS})


def _tags(end: str, training: FailureCounts, validation: FailureCounts, before: FailureCounts) -> dict[str, int]:
    numbers = {name: getattr(training, name) for name in ("failures", *COUNTS) if name != "calls"}
    numbers["failures_epoch"] = training.failures - before.failures
    numbers["validation_failures"] = validation.failures
    return {f"svd/{name}{end}": number for name, number in numbers.items()}

"""The count of failed eigendecompositions over all processes and the whole run.

Shapes: L spectral layers of the model, F counts of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from ._library import FailureCounts, SpectralLayer, spectral_layers
from ._tags import suffix

COUNTS = tuple(field.name for field in fields(FailureCounts))
PARTS = ("training", "validation")

Totals = dict[str, dict[str, FailureCounts]]
"""Counts of all processes by part of the run and layer."""


class SVDFailureCounter(pl.Callback):
    """Counts failed eigendecompositions: matrices of all processes, since the run began (ECCV 2022, table 5).

    Logs totals at the end of each epoch, of training only, like the paper's "failure times": ``svd/failures`` (the sum
    of the next two), ``svd/not_converged``, ``svd/silently_wrong``, ``svd/solved_on_cpu``, ``svd/solved_by_iteration``
    (explained in `FailureCounts`), and ``svd/failures_epoch`` for the epoch alone. ``svd/validation_failures`` counts
    the decompositions of validation, without the sanity check before training. In a model with several spectral layers
    these are sums over the layers, and each layer also has its own tags, which end in ``/NAME``. At the end of the run
    the totals are printed in one line.

    A failure on one process causes no communication when it happens: the processes add up their counts when an epoch of
    training or validation ends, and when a checkpoint is saved, which keeps the totals.

    The same failures give the same totals on any number of processes. A matrix that all processes decompose, as in a
    decorrelated batch norm with ``synchronised`` statistics, is counted once, and so are the batches that all share:
    there the total is the largest count of any process, not the sum. Only ``silently_wrong``, a part of the failures,
    depends on the number of processes: each checks a sample of its own matrices.

    Works with every LightningModule; it reads the counts of the `SpectralLayer` modules in it.
    """

    def __init__(self) -> None:
        self.totals = _no_totals()
        self._before_epoch: dict[str, FailureCounts] = {}
        self._layers: dict[str, SpectralLayer] = {}
        self._mark = torch.zeros(0)  # the layers' own counts when they were last read, (L, F)
        self._pending = torch.zeros(0)  # counts of this process that are not in the totals yet, (2, L, F)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The totals of an earlier run count only if that run is resumed.
        if trainer.ckpt_path is None and trainer.current_epoch == 0:
            self.totals = _no_totals()
        self._layers = {}  # so that the sanity check does not count

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._layers = spectral_layers(pl_module)
        for part in PARTS:
            for name in self._layers:
                self.totals[part].setdefault(name, FailureCounts())
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
            # Lightning has collected the states of the callbacks before this hook.
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for part, totals in self.totals.items():
            state[part] = {name: counts.as_dict() for name, counts in totals.items()}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part in PARTS:
            self.totals[part] = {name: FailureCounts(**counts) for name, counts in state_dict[part].items()}

    def _now(self) -> Tensor:
        """The counts of the layers of this process since they were built, ``(L, F)``."""
        return torch.tensor([astuple(layer.counts) for layer in self._layers.values()], dtype=torch.long)

    def _count(self, part: str) -> None:
        """Attribute what happened since the last call to a part of the run."""
        now = self._now()
        self._pending[PARTS.index(part)] += now - self._mark
        self._mark = now

    def _add_up(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the pending counts of all processes to the totals."""
        gathered = trainer.strategy.all_gather(self._pending.to(pl_module.device))
        of_processes = gathered.reshape(-1, *self._pending.shape).cpu()
        self._pending = torch.zeros_like(self._pending)
        new = torch.where(self._shared(), of_processes.amax(0), of_processes.sum(0))
        for part, rows in zip(PARTS, new.tolist(), strict=True):
            for name, row in zip(self._layers, rows, strict=True):
                self.totals[part][name] = _sum([self.totals[part][name], FailureCounts(*row)])

    def _shared(self) -> Tensor:
        """Mask ``(L, F)`` of the counts that all processes have of the same batches or matrices."""
        same_matrices = torch.tensor([getattr(layer, "synchronised", False) for layer in self._layers.values()])
        same_batches = torch.arange(len(COUNTS)) == COUNTS.index("calls")
        return same_matrices[:, None] | same_batches

    def _metrics(self) -> dict[str, int]:
        training, validation = self.totals["training"], self.totals["validation"]
        metrics = _tags("", _sum(training.values()), _sum(validation.values()), _sum(self._before_epoch.values()))
        if len(self._layers) > 1:
            for name in self._layers:
                metrics |= _tags(suffix(name, self._layers), training[name], validation[name], self._before_epoch[name])
        return metrics

    def _summary(self) -> str:
        training = _sum(self.totals["training"].values())
        validation = _sum(self.totals["validation"].values())
        parts = [
            f"eigendecompositions that failed in training: {training.failures}",
            f"{training.not_converged} not converged, {training.silently_wrong} silently wrong",
            f"{training.solved_on_cpu} solved on the CPU, {training.solved_by_iteration} by iteration",
            f"{training.calls} batches decomposed, of all processes",
            f"in validation: {validation.failures}",
        ]
        if len(self._layers) > 1:
            layers = [f"{name} {counts.failures}" for name, counts in self.totals["training"].items()]
            parts.append(f"by layer: {', '.join(layers)}")
        return "; ".join(parts)


def _no_totals() -> Totals:
    return {"training": {}, "validation": {}}


def _sum(counts: Iterable[FailureCounts]) -> FailureCounts:
    columns = zip(*map(astuple, counts), strict=True)
    return FailureCounts(*map(sum, columns))


def _tags(end: str, training: FailureCounts, validation: FailureCounts, before: FailureCounts) -> dict[str, int]:
    numbers = {name: getattr(training, name) for name in ("failures", *COUNTS) if name != "calls"}
    numbers["failures_epoch"] = training.failures - before.failures
    numbers["validation_failures"] = validation.failures
    return {f"svd/{name}{end}": number for name, number in numbers.items()}

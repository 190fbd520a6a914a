"""Writing the predictions of a run to a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch.distributed
from pytorch_lightning.callbacks import BasePredictionWriter
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

COLUMNS = ("file", "class", "probability", "top5")
BEST = 5
"""Classes in the column ``top5``."""


class Row(NamedTuple):
    """A row of the CSV file; ``file`` is an index in the data set if the predictions name no files."""

    file: str | int
    name: str
    probability: float
    best: str


class PredictionWriter(BasePredictionWriter):
    """Collects the predictions of all processes and writes one CSV file: file, class, probability, top 5.

    The LightningModule may predict a dictionary with ``probabilities`` ``(B, K)``, and with ``files`` and ``errors``
    (pairs of a file and the reason why it could not be read) if it has them; or a tensor ``(B, K)`` of probabilities or
    logits. Other predictions are not written, with a warning. The names of the classes are the data module's
    ``class_names``; without them the classes are numbers.

    The file is written beside its destination and then put in place, so that an older file is never lost to an error.

    Args:
        output: the CSV file; an existing one is replaced.

    Attributes:
        rows: the rows of the file; on the first process, those of all processes.
        unreadable: the files that could not be read, with the reason.
        written: whether there were predictions that could be written.

    Raises:
        OSError: before the first batch, if the file cannot be created; at the end, if it cannot be written.
        ValueError: if ``output`` is a folder.
    """

    def __init__(self, output: str = "predictions.csv") -> None:
        super().__init__(write_interval="batch_and_epoch")
        self.output = Path(output)
        self.rows: list[Row] = []
        self.unreadable: list[tuple[str, str]] = []
        self.written = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        # Fail before the work rather than after it.
        folder = self.output.absolute().parent
        if not folder.is_dir():
            raise FileNotFoundError(f"predictions.output {self.output}: its folder does not exist")
        if self.output.is_dir():
            raise ValueError(f"predictions.output {self.output} is a folder: give a file")
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"predictions.output {self.output}: its folder is not writable")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows, self.unreadable, self.written = [], [], True

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        *_: Any,
    ) -> None:
        parts: Mapping[str, Any] = {"probabilities": prediction}
        if isinstance(prediction, Mapping):
            parts = prediction
        values = parts.get("probabilities")
        if not isinstance(values, Tensor) or values.ndim != 2:
            if self.written:  # one warning is enough
                rank_zero_warn(
                    f"predictions are not written to {self.output}: a {type(prediction).__name__} is neither a tensor "
                    "(batch, classes) nor a dictionary with such a tensor named probabilities"
                )
            self.written = False
            return
        self.unreadable += parts.get("errors", [])
        files = parts.get("files", batch_indices or ())
        if len(files) != len(values):  # the indices of a data set without length are unknown
            files = range(len(self.rows), len(self.rows) + len(values))
        names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
        if names is not None and len(names) != values.shape[1]:  # they are not the names of these classes
            names = None
        for file, probabilities in zip(files, _as_probabilities(values), strict=True):
            self.rows.append(_row(file, probabilities, names))

    def write_on_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.world_size > 1:
            self.rows = _gather(self.rows)
            self.unreadable = _gather(self.unreadable)
        if trainer.is_global_zero and self.written:
            self._write()

    def _write(self) -> None:
        if self.output.exists() and not self.output.is_file():  # a device or a pipe cannot be replaced
            _write_rows(self.rows, self.output)
            return
        output = self.output.resolve()  # a link stays, and its target is replaced
        part = output.with_name(f"{output.name}.part")
        try:
            _write_rows(self.rows, part)
            part.replace(output)
        except OSError as error:
            part.unlink(missing_ok=True)
            message = f"predictions.output {self.output} could not be written: {error.strerror}"
            if output.exists():
                message += "; the previous file is kept"
            raise OSError(message) from error


def _write_rows(rows: Iterable[Row], path: Path) -> None:
    # On Linux a file name may be any bytes. Those that are not UTF-8 are written as they are.
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(sorted(rows))


def _row(file: str | int, probabilities: Tensor, names: Sequence[str] | None) -> Row:
    values, indices = probabilities.topk(min(BEST, len(probabilities)))
    best = []
    for index, value in zip(indices.tolist(), values.tolist(), strict=True):
        name = str(index) if names is None else names[index]
        best.append((name, round(value, 6)))
    return Row(file, *best[0], ";".join(f"{name}:{value}" for name, value in best))


def _as_probabilities(values: Tensor) -> Tensor:
    """Logits become probabilities: rows that do not sum to one or have negative entries are taken for logits."""
    values = values.float()
    sums = values.sum(-1)
    if (values >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return values
    return values.softmax(-1)


def _gather(items: list[Any]) -> list[Any]:
    """The different items of all processes, in order: a sampler may give the same image to several processes."""
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, items)
    return sorted(set().union(*parts))

"""Writes what `predict` finds to a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed
from torch import Tensor


class PredictionWriter(pl.Callback):
    """Collects the predictions of all processes and writes one CSV: file, class, probability, top 5.

    Args:
        output: the CSV file; it is replaced.

    Attributes:
        unreadable: the files that could not be read, with the reason.
    """

    def __init__(self, output: str = "predictions.csv") -> None:
        self.output = Path(output)
        self.rows: list[tuple[str, str, float, str]] = []
        self.unreadable: list[tuple[str, str]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # fail before the work, not after it
        if stage == "predict" and not self.output.absolute().parent.is_dir():
            raise FileNotFoundError(f"predictions.output {self.output}: its folder does not exist")
        if stage == "predict" and self.output.is_dir():
            raise ValueError(f"predictions.output {self.output} is a folder: give a file")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows, self.unreadable = [], []

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        names: list[str] = trainer.datamodule.class_names  # type: ignore[attr-defined]
        self.unreadable += outputs["errors"]
        self.rows += [_row(*pair, names) for pair in zip(outputs["files"], outputs["probabilities"], strict=True)]

    def on_predict_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            self.rows = _gather(self.rows)
            self.unreadable = _gather(self.unreadable)
        if trainer.is_global_zero:
            with self.output.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(("file", "class", "probability", "top5"))
                writer.writerows(sorted(self.rows))


def _row(file: str, probabilities: Tensor, names: list[str]) -> tuple[str, str, float, str]:
    values, indices = probabilities.topk(min(5, len(names)))
    best = [(names[index], round(value, 6)) for index, value in zip(indices.tolist(), values.tolist(), strict=True)]
    return file, *best[0], ";".join(f"{name}:{value}" for name, value in best)


def _gather(items: list[Any]) -> list[Any]:
    parts: list[list[Any]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(parts, items)
    return sorted({item for part in parts for item in part})

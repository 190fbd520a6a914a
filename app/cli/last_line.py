"""The last lines of a run: the accuracy of the network, its files, and an error below a progress bar."""

from __future__ import annotations

import os
import sys

import pytorch_lightning as pl
from torch import Tensor

import callbacks
from callbacks.best_checkpoint import DEFAULT_METRIC, BestCheckpoint


def fit_line(trainer: pl.Trainer, log_dir: str | None) -> str:
    """Return the last line of a fit."""
    if not trainer.current_epoch:
        return f"no epoch was finished (max_epochs {trainer.max_epochs})"
    best = _best_checkpoint(trainer)
    parts = [_result(trainer, best)]
    if best is not None and best.best_model_path:
        parts.append(f"checkpoint {os.path.relpath(best.best_model_path)}")
    if log_dir:
        parts.append(f"log {os.path.relpath(log_dir)}")
    return "; ".join(parts)


def _best_checkpoint(trainer: pl.Trainer) -> BestCheckpoint | None:
    # Not the trainer's `checkpoint_callback`: that is the first one, which may be one of the user's.
    for callback in trainer.callbacks:
        if isinstance(callback, BestCheckpoint):
            return callback
    return None


def _result(trainer: pl.Trainer, best: BestCheckpoint | None) -> str:
    """Return the last and the best value of the monitored metric, or the number of epochs where there is none."""
    metric = DEFAULT_METRIC if best is None else best.monitor
    value = trainer.callback_metrics.get(metric) if metric else None
    if value is not None:
        name = "validation top-1" if metric == DEFAULT_METRIC else metric
        text = f"{name} {value:.4f}"
    else:
        text = f"{trainer.current_epoch} epochs done"
        if not trainer.fit_loop.epoch_loop.val_loop._has_run:
            text += ", no validation in this run"
    if best is not None and best.best_model_score is not None:
        name = "best"
        if value is not None and _is_better(value, best):  # of an epoch that --checkpoint.every_n_epochs leaves out
            name = "best saved"
        text += f" ({name} {best.best_model_score:.4f})"
    return text


def _is_better(value: Tensor, best: BestCheckpoint) -> bool:
    score = best.best_model_score
    return bool(value > score if best.mode == "max" else value < score)


def print_predictions(trainer: pl.Trainer, writer: callbacks.PredictionWriter) -> None:
    """Print how many images were predicted, and each file that could not be read."""
    if not trainer.is_global_zero:
        return
    for file, error in writer.unreadable:
        print(f"unreadable, skipped: {file}: {error}", file=sys.stderr)
    if writer.written:
        print(f"{len(writer.rows)} images predicted, {len(writer.unreadable)} unreadable: {writer.output}")


def end_progress_bar(trainer: pl.Trainer) -> None:
    """End the line of a progress bar that an error has interrupted, so that the error is on its own line."""
    bar = trainer.progress_bar_callback
    if not getattr(bar, "is_enabled", False):  # a user's own progress bar may have no such attribute
        return
    fitting = trainer.fit_loop.epoch_loop
    loops = (fitting, fitting.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
    if any(loop.batch_progress.total.ready for loop in loops):
        print(flush=True)

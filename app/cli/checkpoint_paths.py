"""Bind the state of checkpoint callbacks to the folder of the run, instead of to the path it had when it was saved."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor


class CheckpointPaths(pl.Callback):
    """Lets a resumed run keep its best score if its folder was moved, or is given by another path.

    Lightning 2.6 compares the literal path of the folder, and forgets the scores if it differs: the next validation
    then replaces the best checkpoint, however bad it is
    (https://github.com/Lightning-AI/pytorch-lightning/issues/4911). It also removes the files that the state names
    (https://github.com/Lightning-AI/pytorch-lightning/issues/11379). Only names of files that exist in the folder of
    this run are taken over here, so that nothing else is ever removed or opened.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, ModelCheckpoint):
                continue
            for key in (callback.state_key, callback._legacy_state_key):
                if isinstance(states.get(key), dict):
                    states[key] = state_in_folder(states[key], callback)


def state_in_folder(state: dict[str, Any], callback: ModelCheckpoint) -> dict[str, Any]:
    """Return the state of a checkpoint callback with the paths that its files have now.

    Args:
        state: the state in a checkpoint.
        callback: the callback, which knows the folder of this run.
    """
    best: dict[str, Tensor] = {}
    stored = state.get("best_k_models")
    if isinstance(stored, dict):
        for path, score in stored.items():
            file = _file_here(path, state, callback)
            if file and _is_score(score):
                best[file] = score
    result: dict[str, Any] = {
        "monitor": callback.monitor,
        "dirpath": callback.dirpath,
        "current_score": None,
        "best_k_models": best,
        "best_model_path": _file_here(state.get("best_model_path"), state, callback),
        "last_model_path": _file_here(state.get("last_model_path"), state, callback),
        "best_model_score": None,
        "kth_best_model_path": "",
        "kth_value": callback.kth_value,
    }
    if best:
        ordered = sorted(best, key=lambda file: best[file].item(), reverse=callback.mode == "max")
        result |= {"best_model_path": ordered[0], "best_model_score": best[ordered[0]]}
        result |= {"kth_best_model_path": ordered[-1], "kth_value": best[ordered[-1]]}
    return result


def _file_here(path: Any, state: dict[str, Any], callback: ModelCheckpoint) -> str:
    """The path in the folder of this run of a file that was saved in the folder of the state; empty if it is gone."""
    if not isinstance(path, str) or not path or "\0" in path:
        return ""
    name = PurePath(PurePath(path).name)
    folder = state.get("dirpath")
    # A metric such as val/top1 in the name of the file makes a folder of its first part.
    if isinstance(folder, str) and PurePath(path).is_relative_to(folder):
        name = PurePath(path).relative_to(folder)
    if ".." in name.parts or not name.parts:
        return ""
    file = os.path.join(str(callback.dirpath), name)  # noqa: PTH118, Lightning compares such texts
    return file if os.path.isfile(file) else ""  # noqa: PTH113


def _is_score(score: Any) -> bool:
    return isinstance(score, Tensor) and score.numel() == 1 and not bool(torch.isnan(score))

"""Check the states of callbacks in a checkpoint, before they are restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from app.cli.state_kinds import check_like, is_number
from app.console.text import brief
from callbacks import ConditionNumberMonitor, HybridProtocol, SVDFailureCounter
from callbacks.condition_number_monitor import QUANTITIES

LIBRARIES = ("callbacks.", "pytorch_lightning.")
"""Modules of callbacks whose states are compared with what they hold: those of the user's are not asked."""

PROTOCOL = {"stage": 0, "switch_epoch": 0, "decay_epoch": 0, "svd_layer": "", "svd_options": {}}
"""A state of the `HybridProtocol`, which has none before its training begins."""

STAGES = (0, 1, 2)


def check_callback_state(state: Any, callback: pl.Callback, name: str) -> None:
    """Check the state that a callback would take over.

    Args:
        state: the state in a checkpoint.
        callback: the callback.
        name: its name in the message.

    Raises:
        ValueError: if an entry is of another kind, or contradicts another.
    """
    if isinstance(callback, ModelCheckpoint):
        _check_checkpoint_callback(state, name)
    elif isinstance(callback, HybridProtocol):
        check_like(state, PROTOCOL, name)
        if state and state.get("stage") not in STAGES:
            raise ValueError(f"{name}.stage is {brief(state.get('stage'))}, not one of {STAGES}")
    elif isinstance(callback, SVDFailureCounter):
        check_like(state, {}, name)
        _check_all(state, 0, name)
    elif isinstance(callback, ConditionNumberMonitor):
        check_like(state, {"sums": {}}, name)
        _check_sums(state.get("sums", {}), f"{name}.sums")
    elif type(callback).__module__.startswith(LIBRARIES):
        check_like(state, callback.state_dict(), name)


def _check_all(stored: Any, here: Any, name: str) -> None:
    """Check that all values at any depth of dictionaries are of the kind of one."""
    if isinstance(stored, Mapping):
        for key, value in stored.items():
            _check_all(value, here, f"{name}.{brief(key)}")
    else:
        check_like(stored, here, name)


def _check_sums(sums: Mapping[str, Iterable[Any]], name: str) -> None:
    for layer, row in sums.items():
        check_like(row, [0.0], f"{name}.{brief(layer)}")
        if len(list(row)) != len(QUANTITIES) + 1:
            raise ValueError(f"{name}.{brief(layer)} has {len(list(row))} numbers, not {len(QUANTITIES) + 1}")


def _check_checkpoint_callback(state: Any, name: str) -> None:
    """Check the types in the state of a `ModelCheckpoint`; `CheckpointPaths` keeps its paths from being used."""
    check_like(state, {"best_model_path": "", "kth_best_model_path": "", "last_model_path": ""}, name)
    check_like(state.get("best_k_models", {}), {}, f"{name}.best_k_models")
    for path, score in state.get("best_k_models", {}).items():
        check_like(path, "", f"a path in {name}.best_k_models")
        _check_score(score, f"{name}.best_k_models")
    for key in ("best_model_score", "current_score", "kth_value"):
        if state.get(key) is not None:
            _check_score(state[key], f"{name}.{key}")
    for key in ("dirpath", "monitor"):
        if not isinstance(state.get(key), str | None):
            raise ValueError(f"{name}.{key} is {brief(state[key], 80)}, not a text")


def _check_score(score: Any, name: str) -> None:
    if is_number(score):
        return
    if not isinstance(score, Tensor) or score.numel() != 1 or score.is_complex() or score.is_meta:
        raise ValueError(f"{name} holds {brief(score)}, not a score")
    if score.layout is not torch.strided or score.is_quantized:
        raise ValueError(f"{name} holds a score in another form than a number")

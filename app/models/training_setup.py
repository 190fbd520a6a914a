"""The settings of a training that must not change when it is resumed, as plain text.

Resuming restores the states of optimizer and schedule as they were stored. With another optimizer, schedule or
treatment in the command, Lightning would overwrite the new settings silently, or fail inside torch. So a checkpoint
holds a description of these settings under ``training_setup``, and a resumed run is compared with it.

A description is a flat dictionary of text. A key without a dot names a part of the training and its value the kind of
this part (``optimizer``: ``SGD``); a key with a dot is a setting of that part (``optimizer.lr[0]``: ``0.1``).

A callback that changes the training announces this itself, by an attribute or property ``training_setup`` that is a
dictionary of the same form, such as ``{"OptimalLearningRate": "in use"}``: the key is the name of its class, the value
any text that is equal in two runs that may resume each other. It must be there when the callback's `setup` has run. A
part that is not there counts as ``not in use``, which older checkpoints state explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from app.console.text import brief

LISTED = 8
"""Number of differences that a message names at most."""

ABSENT = "not in use"
"""The value of a part or setting that a description does not hold."""

DERIVED = ("params", "initial_lr", "base_lrs")
"""Entries of an optimizer or schedule that are not settings: they follow from others."""


def describe_optimizer(optimizer: Optimizer) -> dict[str, str]:
    """The class of an optimizer and the settings of its parameter groups; to be called before its first step."""
    description = {"optimizer": type(optimizer).__name__}
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key not in DERIVED:
                description[f"optimizer.{key}[{index}]"] = repr(value)
    return description


def describe_schedule(scheduler: LRScheduler) -> dict[str, str]:
    """The class of a schedule and its settings; to be called before its first step."""
    description = {"lr_scheduler": type(scheduler).__name__}
    for key, value in scheduler.state_dict().items():
        # A user's function has no text that is the same in another process.
        if not key.startswith("_") and key not in DERIVED and not callable(value):
            description[f"lr_scheduler.{key}"] = repr(value)
    return description


def announced(callbacks: Iterable[pl.Callback]) -> dict[str, str]:
    """The parts of a training that its callbacks announce as theirs."""
    description: dict[str, str] = {}
    for callback in callbacks:
        description.update(getattr(callback, "training_setup", {}))
    return description


def check_unchanged(stored: dict[str, str], here: dict[str, str]) -> None:
    """Compare the description in a checkpoint with that of the run that would resume it.

    Raises:
        ValueError: if they differ. Where parts differ in kind, the message leaves out their settings.
    """
    changed = [key for key in sorted(stored.keys() | here.keys()) if _value(stored, key) != _value(here, key)]
    parts = [key for key in changed if "." not in key]
    differences = []
    for key in (parts or changed)[:LISTED]:
        differences.append(f"{brief(key)}: {brief(_value(stored, key))} in the checkpoint, {_value(here, key)} now")
    if len(parts or changed) > LISTED:
        differences.append(f"and {len(parts or changed) - LISTED} more")
    if differences:
        raise ValueError(
            f"cannot resume with another optimizer, schedule or treatment ({'; '.join(differences)}): "
            "use the settings of the checkpoint, or start a new run without --ckpt_path"
        )


def _value(description: dict[str, Any], key: str) -> str:
    return str(description.get(key, ABSENT))

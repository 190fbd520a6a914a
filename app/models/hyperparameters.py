"""Hyper-parameters of a model as plain data: a checkpoint describes the objects that a model was given.

A checkpoint is read with ``weights_only=True`` and nothing in it is executed, so it cannot bring back an object of a
user's class. It only names the class, and whoever loads it gives the object again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl

PLAIN = (str, int, float, type(None))

INSTANTIATOR = "_instantiator"
"""The hyper-parameter that has `load_from_checkpoint` build, by jsonargparse, the objects that it describes.

It is left out if there is such an object, so that no class that a file names is instantiated.
"""


def plain(value: Any) -> Any:
    """An argument as plain data.

    Objects become ``{"class_path": ..., "init_args": ...}``, as in a configuration, functions and classes their import
    path. The arguments of an object are known only if it is a dataclass.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain(entry) for entry in value]
    if hasattr(value, "__qualname__"):
        return _import_path(value)
    description: dict[str, Any] = {"class_path": _import_path(type(value))}
    if dataclasses.is_dataclass(value):
        description["init_args"] = {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return description


def save_plain_hyperparameters(module: pl.LightningModule, objects: Mapping[str, Any], ignore: Sequence[str]) -> None:
    """Call `save_hyperparameters` so that only plain data is saved; to be called in ``__init__``.

    Args:
        module: the module under construction.
        objects: names of the arguments that may be objects.
        ignore: names of arguments that are not saved at all.

    Raises:
        ValueError: if an argument is the description of an object, as `load_from_checkpoint` finds it in a checkpoint.
    """
    for name, value in objects.items():
        _refuse_description(name, value)
    descriptions = {name: plain(value) for name, value in objects.items() if not isinstance(value, PLAIN)}
    module.save_hyperparameters(ignore=[*ignore, *descriptions])
    if INSTANTIATOR not in module.hparams:
        module.save_hyperparameters(descriptions)
    elif descriptions:
        # LightningCLI hands over its configuration in place of the arguments. It is plain, and has the arguments of
        # modules, which an object does not know.
        module.save_hyperparameters(ignore=list(ignore))
        del module.hparams[INSTANTIATOR]


def replace_hyperparameter(module: pl.LightningModule, name: str, value: Any) -> None:
    """Replace the saved value of a hyper-parameter, as plain data."""
    description = plain(value)
    module.hparams[name] = description
    if isinstance(description, dict) and "class_path" in description:
        module.hparams.pop(INSTANTIATOR, None)


def _refuse_description(name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        raise ValueError(
            f"{name} is an object of the class {value.get('class_path')}, which a checkpoint describes but does not "
            f"hold: give it again, load_from_checkpoint(path, {name}=...)"
        )


def _import_path(thing: type | Callable[..., Any]) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"

"""Validate a checkpoint before Lightning restores it: a one-line error instead of a `KeyError`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packaging.version import InvalidVersion, Version
from pytorch_lightning.utilities.migration import migrate_checkpoint

from app.cli.state_kinds import is_whole
from app.console.text import brief, printable
from app.models.torch_files import check_weights, read_checkpoint

NEEDED: Mapping[str, type] = {"state_dict": dict, "pytorch-lightning_version": str}
"""Entries of every checkpoint of Lightning."""

NEEDED_BY_OUR_MODELS: Mapping[str, type] = {"hyper_parameters": dict}
"""Entries of every checkpoint of a model of this program; a user's model may lack it."""

NEEDED_TO_FIT: Mapping[str, type] = {
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
}
"""Entries that only ``fit`` needs."""

LOOPS = {"fit": "fit_loop", "validate": "validate_loop", "test": "test_loop", "predict": "predict_loop"}
"""The entry of ``loops`` that each subcommand restores."""


def read_run(path: str, subcommand: str, *, our_model: bool) -> dict[str, Any]:
    """Return a checkpoint that has what Lightning and `merge_run` need.

    Args:
        path: the file.
        subcommand: fit, validate, test or predict.
        our_model: whether it is to be loaded into a model of this program.

    Raises:
        ValueError: for any other file.
    """
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"--ckpt_path {path} is not a checkpoint that can be read: {error}") from error
    if not isinstance(checkpoint, dict):
        raise _invalid(path, f"it holds a {type(checkpoint).__name__}")
    needed = dict(NEEDED)
    if our_model:
        needed |= NEEDED_BY_OUR_MODELS
    if subcommand == "fit":
        needed |= NEEDED_TO_FIT
    for key, kind in needed.items():
        _check_entry(checkpoint, key, kind, path)
    checkpoint = _of_this_version(checkpoint, path)
    if subcommand == "fit":
        _check_optimizers(checkpoint, path)
    if "loops" in checkpoint:
        _check_loop(checkpoint["loops"], LOOPS[subcommand], path)
    if not isinstance(checkpoint.get("callbacks", {}), dict):
        raise _invalid(path, "callbacks is not a dict")
    _check_hyperparameters(checkpoint.get("hyper_parameters"), path, our_model)
    _check_texts(checkpoint.get("training_setup", {}), path)
    for key in ("epoch", "global_step"):
        if not is_whole(checkpoint.get(key, 0)) or checkpoint.get(key, 0) < 0:
            raise _invalid(path, f"{key} is {brief(checkpoint[key])}, not a count")
    if our_model:
        try:
            check_weights(checkpoint["state_dict"])
        except ValueError as error:
            raise _invalid(path, f"in its weights, {error}") from error
    return checkpoint


def _of_this_version(checkpoint: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a checkpoint in the form of this version of Lightning, which converts older ones when it loads them."""
    text = checkpoint["pytorch-lightning_version"]
    try:
        Version(text)
    except InvalidVersion as error:
        raise _invalid(path, f"{brief(text)} is not a version of Lightning") from error
    try:
        return migrate_checkpoint(checkpoint)[0]
    except Exception as error:  # Lightning takes the entries of older checkpoints for granted.
        raise _invalid(path, f"its entries are not those of Lightning {brief(text)}") from error


def _check_hyperparameters(stored: Any, path: str, our_model: bool) -> None:
    if stored is None and not our_model:
        return
    if not isinstance(stored, dict):
        raise _invalid(path, f"hyper_parameters is a {type(stored).__name__}, not a dict")
    if not isinstance(stored.get("_class_path", None if our_model else ""), str):
        raise _invalid(path, "it names no model")
    for key in stored:
        if not isinstance(key, str):
            raise _invalid(path, f"{brief(key)} is not the name of a hyper-parameter")


def _check_texts(setup: Any, path: str) -> None:
    """Check the description of the training, whose texts are compared and printed."""
    if not isinstance(setup, dict):
        raise _invalid(path, f"training_setup is a {type(setup).__name__}, not a dict")
    for key, value in setup.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise _invalid(path, f"training_setup.{brief(key)} is {brief(value)}, not a text")


def _check_entry(checkpoint: dict[str, Any], key: str, kind: type, path: str) -> None:
    if key not in checkpoint:
        reason = f"it holds no {key}"
        if "state_dict" in checkpoint:
            reason += f"; to start from its weights, --model.init_from {path}"
        raise _invalid(path, reason)
    if not isinstance(checkpoint[key], kind):
        raise _invalid(path, f"{key} is a {type(checkpoint[key]).__name__}, not a {kind.__name__}")


def _check_loop(loops: Any, name: str, path: str) -> None:
    """Check the counters of a loop: Lightning reads their entries by name, down to the second level."""
    if not isinstance(loops, dict) or not isinstance(loops.get(name), dict):
        raise _invalid(path, f"its loops hold no {name}")
    for key, progress in loops[name].items():
        if not isinstance(progress, dict):
            raise _invalid(path, f"{brief(key)} of its {name} is not a dict")
        if not str(key).endswith(("batch_progress", "epoch_progress", "scheduler_progress")):
            continue
        for counters in ("total", "current"):
            if not isinstance(progress.get(counters), dict):
                raise _invalid(path, f"{key} of its {name} holds no {counters} counters")


def _check_optimizers(checkpoint: dict[str, Any], path: str) -> None:
    for state in checkpoint["optimizer_states"]:
        if not isinstance(state, dict) or not {"state", "param_groups"} <= state.keys():
            raise _invalid(path, "an entry of optimizer_states is not the state of an optimizer")
    for state in checkpoint["lr_schedulers"]:
        if not isinstance(state, dict):
            raise _invalid(path, "an entry of lr_schedulers is not the state of a schedule")


def _invalid(path: str, reason: str) -> ValueError:
    return ValueError(f"--ckpt_path {printable(path)} is not a checkpoint of this program: {reason}")

"""Merge the hyper-parameters of a checkpoint with those of the command line.

The configuration is the user's, and may make objects. A checkpoint may be anybody's: its values are plain data, of the
types of the model's own arguments, or they are refused.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import yaml
from jsonargparse import Namespace
from pytorch_lightning.utilities import rank_zero_info

from app.cli.argument_types import accepts, argument_types, is_plain
from app.cli.given_arguments import plain
from app.cli.trial_model import check_model
from app.console.text import brief, printable
from app.models.backbones import BACKBONES
from app.models.torch_files import read_checkpoint

OPTIONS_OF = {"meta_layer": "meta_options", "decorrelation": "decorrelation_options"}
"""Arguments of the model whose options belong to them."""

DECORRELATION = {"decorrelation", "decorrelation_options"}
ARCHITECTURE = {
    "backbone",
    "downsampling",
    "stem",
    "dim",
    "spectral_dtype",
    "function",
    "feature_normalisation",
    "meta_layer",
    "meta_options",
    *DECORRELATION,
}
"""Arguments of the model that fine-tuning takes from a checkpoint."""

WEIGHTS = {"weights", "init_from"}
"""Arguments of the model that say where its weights come from."""


def merge_run(checkpoint: dict[str, Any], model: Namespace, path: str, given: set[str]) -> None:
    """Set the model's arguments to those of a checkpoint, except those that the command line itself gives.

    Args:
        checkpoint: the checkpoint, as `read_run` returns it.
        model: the configuration of the model, which is changed.
        path: the file of the checkpoint.
        given: names of the arguments that the command line itself gives.

    Raises:
        ValueError: if the checkpoint is of another class, a value is not plain data of the type of its argument (see
            `_merge`), or the model cannot be built of them.
    """
    stored = dict(checkpoint.get("hyper_parameters") or {})
    # Lightning's note of how to build the object, which only `load_from_checkpoint` uses.
    stored.pop("_instantiator", None)
    stored_class = stored.pop("_class_path", model["class_path"])
    if _short_name(stored_class) != _short_name(model["class_path"]):
        raise ValueError(
            f"--ckpt_path {path} holds a {brief(stored_class)}, the configuration asks for {model['class_path']}"
        )
    arguments = model.get("init_args")
    if arguments is None:  # a class without arguments
        return
    for key in sorted(WEIGHTS & given):
        rank_zero_info(f"model.{key} is not used: the weights are those of {path}")
    _merge(model, stored, path, given)
    for key in WEIGHTS & set(vars(arguments)):
        arguments[key] = None
    _check_model(model, checkpoint, path, classes_are_given="num_classes" in given)


def merge_architecture(model: Namespace, given: set[str]) -> None:
    """Set backbone and pooling to those of the checkpoint in ``init_from``, if it is one of this program.

    The classifier stays that of the configuration: fine-tuning is for other classes.

    Args:
        model: the configuration of the model, which is changed.
        given: names of the arguments that the command line itself gives.

    Raises:
        ValueError: if a value is not plain data of the type of its argument (see `_merge`), or the model cannot be
            built of them.
    """
    path = model["init_args"]["init_from"]
    try:
        checkpoint = read_checkpoint(path)
    except ValueError:
        return  # the model itself reports what is wrong with the file
    stored = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if not isinstance(stored, dict) or not _is_backbone(stored.get("backbone")):
        return
    wanted = ARCHITECTURE
    if stored.get("decorrelation") is None:
        # A network without decorrelation may be given one when it is fine-tuned.
        wanted = ARCHITECTURE - DECORRELATION
    _merge(model, {key: stored[key] for key in stored if key in wanted}, path, given)
    _check_model(model, checkpoint, path, classes_are_given=True)


def _check_model(model: Namespace, checkpoint: dict[str, Any], path: str, *, classes_are_given: bool) -> None:
    try:
        check_model(model, checkpoint.get("state_dict") or {}, classes_are_given)
    except ValueError as error:
        raise ValueError(f"the hyper-parameters of {printable(path)} are not those of a model: {error}") from error


def _is_backbone(stored: Any) -> bool:
    """Return whether a stored value is a backbone of this program: other programs have other names for theirs."""
    if isinstance(stored, dict):
        return names_a_class(stored)
    return isinstance(stored, str) and stored in BACKBONES


def _merge(model: Namespace, stored: dict[str, Any], path: str, given: set[str]) -> None:
    """Take over stored values except those that the command line itself gives, and print the differences.

    Raises:
        ValueError: if a stored value names a class. A configuration is instantiated, so that a checkpoint from somebody
            else could otherwise run any command: such a value counts only if the configuration has it too. Also if
            it is not of the type that its argument has in the model's own class.
    """
    arguments, types = model["init_args"], _types_of(model["class_path"])
    for layer, its_options in OPTIONS_OF.items():
        if layer in given and plain(arguments.get(layer)) != stored.get(layer):
            given = given | {its_options}
    for key, value in stored.items():
        if key not in arguments:
            continue
        here = plain(arguments[key])
        # Tensors have no truth value to be compared by.
        if is_plain(value) and here == value:
            continue
        if key in given:
            _print_difference(key, value, f"{brief(here)} on the command line", "command line")
            continue
        if names_a_class(value):
            raise ValueError(
                f"{path} was made with an object as model.{key}, which is not taken from a file: give --model.{key}"
            )
        if not accepts(types.get(key, Any), value):
            raise ValueError(f"{path} holds {brief(value)} as model.{key}, which is not of the type of that argument")
        _print_difference(key, value, f"{brief(here)} in the configuration", "checkpoint")
        arguments[key] = value


def _types_of(class_path: str) -> dict[str, Any]:
    """Return the types of the arguments of the model, whose class the configuration names."""
    module, _, name = class_path.rpartition(".")
    # The parser has imported it already.
    kind = getattr(sys.modules.get(module), name, None)
    return {} if kind is None else argument_types(kind)


def _print_difference(key: str, stored: Any, here: str, winner: str) -> None:
    rank_zero_info(f"model.{key}: {brief(stored)} in the checkpoint, {here}: the {winner} wins")


def names_a_class(value: Any) -> bool:
    """Return whether a stored value has a ``class_path`` or an import path at any depth, and would become an object."""
    pending, seen = [value], dict[int, Any]()
    while pending:
        entry = pending.pop()
        if id(entry) in seen:  # Lists that contain each other would be visited forever.
            continue
        seen[id(entry)] = entry
        if isinstance(entry, dict):
            if "class_path" in entry:
                return True
            pending += entry.values()
        elif isinstance(entry, list | tuple | set):
            pending += entry
        elif isinstance(entry, str):
            if _is_import_path(entry):
                return True
            pending.append(_as_yaml(entry))
    return False


def _is_import_path(text: str) -> bool:
    """Return whether a text is the path of a class or function, which jsonargparse would import."""
    parts = text.split(".")
    if len(parts) == 1 or not all(part.isidentifier() for part in parts):
        return False
    return parts[0] in sys.modules or importlib.util.find_spec(parts[0]) is not None


def _as_yaml(text: str) -> Any:
    """Return what a text says as YAML, as jsonargparse reads texts where any value is accepted; else ``None``."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return None
    return None if value == text else value


def _short_name(class_path: str) -> str:
    """Return the name of a class without its module, which has changed since older checkpoints were written."""
    return class_path.rsplit(".", 1)[-1]

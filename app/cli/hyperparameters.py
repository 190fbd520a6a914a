"""What a model is built from where a checkpoint and the command line both have something to say."""

from __future__ import annotations

import re
import sys
from typing import Any

from pytorch_lightning.utilities import rank_zero_info

from app.models.backbones import BACKBONES
from app.models.pretrained import read_checkpoint

OPTIONS_OF = {"meta_layer": "meta_options", "decorrelation": "decorrelation_options"}
"""Arguments of the model whose options belong to them."""

ARCHITECTURE = {"backbone", "dim", "spectral_dtype", "downsampling", "stem", *OPTIONS_OF, *OPTIONS_OF.values()}
"""Arguments of the model that fine-tuning takes from a checkpoint."""

WEIGHTS = {"weights", "init_from"}
"""Arguments of the model that say where its weights come from."""

NEEDED = {"state_dict": dict, "hyper_parameters": dict, "pytorch-lightning_version": str}
"""What every checkpoint of this program holds."""

NEEDED_TO_GO_ON = {"loops": dict, "optimizer_states": list, "lr_schedulers": list}
"""What else ``fit`` needs."""


def read_run(path: str, fitting: bool) -> dict[str, Any]:
    """A checkpoint that holds what Lightning and `take_hyperparameters` take for granted.

    Raises:
        ValueError: for any other file.
    """
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"--ckpt_path {path} is no checkpoint that can be read: {error}") from error
    if not isinstance(checkpoint, dict):
        raise foreign(path, f"it holds a {type(checkpoint).__name__}")
    for key, kind in {**NEEDED, **(NEEDED_TO_GO_ON if fitting else {})}.items():
        if key not in checkpoint:
            weights = f"; to start from its weights, --model.init_from {path}" if "state_dict" in checkpoint else ""
            raise foreign(path, f"it holds no {key}{weights}")
        if not isinstance(checkpoint[key], kind):
            raise foreign(path, f"{key} is a {type(checkpoint[key]).__name__}, not a {kind.__name__}")
    if not isinstance(checkpoint["hyper_parameters"].get("_class_path"), str):
        raise foreign(path, "it names no model")
    return checkpoint


def foreign(path: str, why: str) -> ValueError:
    """The error for a file that something else has written."""
    return ValueError(f"--ckpt_path {path} is no checkpoint of this program: {why}")


def take_hyperparameters(checkpoint: dict[str, Any], model: Any, path: str) -> None:
    """The checkpoint's hyper-parameters stand, but those given on the command line itself win."""
    stored = dict(checkpoint["hyper_parameters"])
    stored.pop("_instantiator", None)
    stored_class = stored.pop("_class_path")
    if stored_class.rsplit(".", 1)[-1] != model["class_path"].rsplit(".", 1)[-1]:
        raise ValueError(f"--ckpt_path {path} holds a {stored_class}, the configuration asks for {model['class_path']}")
    given = _given_model_keys(sys.argv[1:])
    for key in WEIGHTS:
        if key in given:
            rank_zero_info(f"model.{key} is not used: the weights are those of {path}")
    _settle(model["init_args"], stored, given)
    for key in WEIGHTS & set(model["init_args"].keys()):
        model["init_args"][key] = None


def take_architecture(model: Any) -> None:
    """Fine-tune the network that a checkpoint of this program holds: its backbone and pooling, not its classifier."""
    path = model["init_args"].get("init_from")
    if not path:
        return
    try:
        checkpoint = read_checkpoint(path)
    except ValueError:
        return  # the model says what is wrong with the file
    stored = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if isinstance(stored, dict) and str(stored.get("backbone")) in BACKBONES:  # other programs have other names
        stored = {key: value for key, value in stored.items() if key in ARCHITECTURE}
        if stored.get("decorrelation") is None:  # a network that had none may be given one
            stored = {key: value for key, value in stored.items() if not key.startswith("decorrelation")}
        _settle(model["init_args"], stored, _given_model_keys(sys.argv[1:]))


def _settle(arguments: Any, stored: dict[str, Any], given: set[str]) -> None:
    """What the checkpoint stores stands, but for what is given on the command line itself; say what differs."""
    for layer, its_options in OPTIONS_OF.items():
        if layer in given and arguments.get(layer) != stored.get(layer):
            given = given | {its_options}
    for key, value in stored.items():
        here = arguments.get(key)
        here = here.as_dict() if hasattr(here, "as_dict") else here
        if here == value or key not in arguments:
            continue
        where, winner = ("on the command line",) * 2 if key in given else ("in the configuration", "in the checkpoint")
        rank_zero_info(f"model.{key}: {value} in the checkpoint, {here} {where}: what is {winner} wins")
        if key not in given:
            arguments[key] = value


def _given_model_keys(arguments: list[str]) -> set[str]:
    """The names of the model's arguments that stand on the command line itself.

    Raises:
        ValueError: for a whole model there (``--model FILE``, ``--model JSON``): what of it should win is not plain.
    """
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        whole = value if name == "--model" else name.removeprefix("--model=") if name.startswith("--model=") else "Name"
        if not whole.isidentifier():
            raise ValueError(
                "with --ckpt_path or init_from, give single values of the model (--model.KEY VALUE), not it as a whole"
            )
    pattern = re.compile(r"--model\.(?:init_args\.)?(\w+)")
    return {match[1] for argument in arguments if (match := pattern.match(argument))}

"""The arguments of the model that stand on the command line itself, rather than in configuration files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.cli import LightningArgumentParser

from app.cli.parser import config_files


def given_model_keys(parser: LightningArgumentParser, options: Namespace, arguments: Sequence[str]) -> set[str]:
    """Return the names of the model's arguments that the command line gives.

    Args:
        parser: the parser of all subcommands.
        options: the parsed configuration of the subcommand, from files and command line.
        arguments: the command line, which begins with the subcommand once the configuration files are taken out.

    Raises:
        ValueError: if the command line gives the model as a whole (``--model FILE``, ``--model JSON``).
    """
    _, rest = config_files(arguments)
    rest, models = _without_class(rest)
    for value in models:
        if Path(value).is_file() or not all(part.isidentifier() for part in value.split(".")):
            raise ValueError(
                "with --ckpt_path or init_from, give single values of the model (--model.KEY VALUE), not all of it"
            )

    def parse(init_args: Namespace) -> Namespace:
        """Parse the command line on top of the configuration, in which the model has no other arguments than these."""
        base = options.clone()
        base["model"] = Namespace(class_path=options["model"]["class_path"], init_args=init_args.clone())
        # Without validation, as required arguments of the model may be in the files.
        parsed = parser.parse_args(rest, namespace=Namespace({rest[0]: base}), defaults=False, _skip_validation=True)
        model: Namespace = parsed[rest[0]]["model"]
        return model

    # An option of an object, such as --model.optimizer.lr, is parsed by the class of the object, which the files name.
    classes = class_paths(options["model"].get("init_args") or Namespace())
    with_classes = parse(classes).get("init_args") or Namespace()
    unchanged = [key for key in vars(classes) if with_classes.get(key) == classes[key]]
    # A class that is given exactly as in the files has changed nothing above, but is noticed here.
    for key in unchanged:
        del classes[key]
    given = parse(classes)
    return set(vars(given.get("init_args") or Namespace())) | set(given.get("dict_kwargs") or {})


def _without_class(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off the values of ``--model``, which name its class or give it as a whole."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", action="append", default=[])
    given, rest = parser.parse_known_args(arguments)
    return rest, given.model


def class_paths(arguments: Namespace) -> Namespace:
    """Return only the classes of the objects among the arguments, at any depth."""
    found = Namespace()
    for key, value in vars(arguments).items():
        if isinstance(value, Namespace) and "class_path" in value:
            found[key] = Namespace(class_path=value["class_path"])
            inner = class_paths(value.get("init_args") or Namespace())
            if vars(inner):
                found[key]["init_args"] = inner
    return found


def plain(value: Any) -> Any:
    """Return a parsed value as dictionaries and lists, in which form checkpoints store it."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value

"""Take the number of classes from the data, if the configuration does not give it."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from pytorch_lightning.utilities import rank_zero_info


def take_number_of_classes(parser: ArgumentParser, options: Namespace) -> None:
    """Set the model's argument ``num_classes``, where it has one that is null, to the number of classes of the data.

    The data module is built for that alone, before the model: jsonargparse's own links between arguments would not let
    the configuration give a number, which is then checked against the data.

    Args:
        parser: parser of the subcommand.
        options: its configuration, which is changed.
    """
    model, data = options.get("model"), options.get("data")
    arguments = model.get("init_args") if model else None
    if not data or arguments is None or arguments.get("num_classes", 0) is not None:
        return
    number = _number_of_classes(parser.instantiate_classes(Namespace(data=data))["data"])
    if number is not None:
        rank_zero_info(f"model.num_classes: {number}, taken from the data")
        arguments["num_classes"] = number


def _number_of_classes(data: Any) -> int | None:
    """The number of class names of a data module, or its ``num_classes``, as other projects name it."""
    names = getattr(data, "class_names", None)
    return getattr(data, "num_classes", None) if names is None else len(names)

"""Compare the kinds of stored values with those of the object that is to take them over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from app.console.text import brief

LARGEST = 2**62
"""Bound of stored whole numbers: counters are added to, and turned into numbers of 64 bits."""


def check_like(stored: Any, here: Any, name: str, *, whole: bool = True) -> None:
    """Check that a stored value is of the kind of the one that it would replace.

    Entries that a dictionary has only on one side are not compared: states change from one version to the next.
    Nothing can be said where the value here is ``None``, or an object.

    Args:
        stored: a value of a checkpoint.
        here: the value that it would replace.
        name: its name in the message.
        whole: whether a whole number may only be replaced by another. Settings are often whole by chance.

    Raises:
        ValueError: if it is of another kind.
    """
    if isinstance(here, Tensor):
        check_tensor_like(stored, here, name)
    elif isinstance(here, Mapping):
        _check(isinstance(stored, Mapping), stored, name, "a dictionary")
        for key in here.keys() & stored.keys():
            check_like(stored[key], here[key], f"{name}.{brief(key)}", whole=whole)
    elif isinstance(here, list | tuple):
        _check(isinstance(stored, list | tuple), stored, name, "a list")
        if here:
            for index, entry in enumerate(stored):
                check_like(entry, here[min(index, len(here) - 1)], f"{name}[{index}]", whole=whole)
    elif isinstance(here, bool):
        _check(isinstance(stored, bool), stored, name, "true or false")
    elif isinstance(here, int) and whole:
        _check(is_whole(stored), stored, name, "a whole number")
    elif isinstance(here, int | float):
        _check(is_number(stored), stored, name, "a number")
    elif isinstance(here, str):
        _check(isinstance(stored, str), stored, name, "a text")


def check_tensor_like(stored: Any, here: Tensor, name: str) -> None:
    """Check shape and kind of a stored tensor; a number will do for a tensor without dimensions.

    Raises:
        ValueError: if they are others.
    """
    if not here.ndim and is_number(stored):
        return
    _check(isinstance(stored, Tensor), stored, name, "a tensor")
    if stored.shape != here.shape:
        raise ValueError(f"{name} has the shape {_shape(stored)}, not {_shape(here)}")
    same = stored.is_floating_point() == here.is_floating_point() and stored.is_complex() == here.is_complex()
    if not same or stored.layout is not here.layout or stored.is_meta or stored.is_quantized:
        kind = "without numbers" if stored.is_meta else f"{stored.layout} {stored.dtype}"
        raise ValueError(f"{name} is a tensor of another kind ({kind.replace('torch.', '')})")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number of a size that counters have."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and no truth value."""
    return is_whole(value) or isinstance(value, float)


def _check(holds: bool, stored: Any, name: str, kind: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {brief(stored, 80)}, not {kind}")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "of a number"

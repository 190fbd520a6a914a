"""The names of the classes that a network was trained on, against those of the data that it is used with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.console.text import printable, shortened


def describe_renamed_classes(stored: Any, here: Sequence[str]) -> str | None:
    """Describe which classes have other names now; ``None`` if none has, or the names are not known.

    The network knows its classes only by their numbers: if one is renamed, or another takes its place, its accuracy and
    its predictions are those of the old classes under the new names.

    Args:
        stored: the names in a checkpoint, whose content is not trusted; earlier versions stored none.
        here: the names in the data.
    """
    if not isinstance(stored, list) or len(stored) != len(here):
        return None
    different: list[str] = []
    for number, (before, now) in enumerate(zip(stored, here, strict=True)):
        if isinstance(before, str) and before != now:
            names = [shortened(printable(name), 40) for name in (before, now)]
            different.append(f"class {number} was {names[0]} in training and is {names[1]} in the data")
    if not different:
        return None
    if len(different) > 1:
        return f"{different[0]}, and {len(different) - 1} more have other names"
    return different[0]

"""The known name nearest to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`, or ``None`` if none is like it; upper and lower case are equal.

    >>> nearest("svd-pad", ["svd-pade", "svd-taylor"])
    'svd-pade'
    """
    by_lower_case = {entry.lower(): entry for entry in known}
    matches = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return by_lower_case[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean NAME?`` with the nearest known name, or an empty text if none is like it."""
    match = nearest(name, known)
    return f"did you mean {match}?" if match else ""

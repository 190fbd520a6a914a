"""Check whether a plain value has the type of an argument.

A configuration is parsed by jsonargparse, which makes objects of what names a class. The values in a checkpoint may
come from anybody, so they are never passed on before they are known to be plain data of the argument's type.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**31
"""Bound of whole numbers: they are sizes, or numbers of steps."""


def argument_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of the arguments of a class or function, as far as they have any."""
    if inspect.isclass(function):
        function = function.__init__
    try:
        return get_type_hints(function)
    except Exception:  # The annotations of a user's function may name modules that cannot be imported.
        return {}


def accepts(kind: Any, value: Any) -> bool:
    """Return whether plain data is of a type; types of objects accept nothing.

    >>> accepts(int | None, 3), accepts(int | None, "3")
    (True, False)
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return is_plain(value, LARGEST)
    if kind is None or kind is type(None):
        return value is None
    if kind is bool or kind is str:
        return type(value) is kind
    if kind is int:
        return type(value) is int and abs(value) < LARGEST
    if kind is float:
        return type(value) in (int, float)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in arguments)
    if origin in (Union, types.UnionType):
        return any(accepts(option, value) for option in arguments)
    return _accepts_container(origin or kind, arguments, value)


def _accepts_container(origin: Any, arguments: tuple[Any, ...], value: Any) -> bool:
    if origin in (dict, Mapping):
        keys, values = arguments or (Any, Any)
        if not isinstance(value, dict):
            return False
        return all(accepts(keys, key) and accepts(values, entry) for key, entry in value.items())
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return False
        entry_kind = arguments[0] if arguments else Any
        return all(accepts(entry_kind, entry) for entry in value)
    return False


def is_plain(value: Any, largest: float = math.inf) -> bool:
    """Return whether a value is plain data, with whole numbers of bounded size."""
    if isinstance(value, dict):
        return all(is_plain(key, largest) and is_plain(entry, largest) for key, entry in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(entry, largest) for entry in value)
    if type(value) is int:
        return abs(value) < largest
    return value is None or isinstance(value, bool | float | str)

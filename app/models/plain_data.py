"""Limits on the contents of a file: plain data and tensors, of a depth and size that can be walked and stored.

A file of a few kilobytes can describe gigabytes: lists that contain each other, or a tensor that is a view of one
number. Comparing, copying or printing such a value would never end. So everything is measured once, after it was read
and before anything else walks it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from app.console.text import printable, shortened

DEEPEST = 64
"""Largest depth of lists and dictionaries; checkpoints of Lightning have about 8."""

MOST_ENTRIES = 1_000_000
"""Entries that a file may have, where one that stands at several places counts as often; more if it really holds
`REPEATED` times fewer different ones."""

REPEATED = 16
"""How often a file may repeat its entries, and the numbers of its tensors, by references."""

FREE_BYTES = 16 * 2**20
"""Bytes that the tensors of a small file may declare without having them."""

LONGEST_NUMBER = 1024
"""Bits of the longest whole number; states of random number generators have 128."""

DICTIONARIES = (dict, OrderedDict, Counter)
SEQUENCES = (list, tuple, set, torch.Size)
ATOMS = (type(None), bool, float, complex, bytes, torch.dtype, torch.device, torch.layout)
KEYS = (str, int, float, bool, type(None), bytes, tuple)


def check_plain(content: Any, file_size: int) -> None:
    """Check the contents of a file.

    Args:
        content: what was read.
        file_size: bytes of the file.

    Raises:
        ValueError: for objects other than plain data and tensors, and beyond the limits of this module; the message
            names the entry.
    """
    measure = _Measure()
    entries = measure.walk(content)
    if entries > max(MOST_ENTRIES, REPEATED * measure.visited):
        raise ValueError(f"it is a small structure that unfolds to {entries:.0e} entries")
    if measure.declared > FREE_BYTES + REPEATED * file_size:
        name, size = measure.largest
        raise ValueError(f"{name} declares {size:.1e} bytes, and the whole file has {file_size:.1e}")


class _Measure:
    """One walk through the contents of a file.

    Attributes:
        entries: number of entries within each object, itself included, by its id.
        visited: number of entries that were really there.
        declared: bytes that all tensors together claim to have.
        largest: the name of the largest tensor, and its bytes.
    """

    def __init__(self) -> None:
        self.entries: dict[int, int] = {}
        self.visited = 0
        self.declared = 0
        self.largest = ("", 0)
        self._path: list[Any] = []

    def walk(self, value: Any) -> int:
        """Measure a value; return the number of its entries, with those that are repeated."""
        self.visited += 1
        if id(value) in self.entries:
            return self.entries[id(value)]
        # Recursion ends here at the latest, even if lists contain themselves.
        if len(self._path) > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        entries = 1
        if type(value) in DICTIONARIES or type(value) in SEQUENCES:
            _check_attributes(value, self.name)
            for key, entry in _children(value):
                self._path.append(key)
                entries += self.walk(entry)
                self._path.pop()
        else:
            entries += self._atom(value)
        self.entries[id(value)] = entries
        return entries

    @property
    def name(self) -> str:
        """The place of the walk, such as ``state_dict.classifier.weight``."""
        return shortened(".".join(printable(str(key)) for key in self._path), 120) or "the file"

    def _atom(self, value: Any) -> int:
        """Check a value without entries; return how many entries a long text counts for."""
        if type(value) is str:
            return len(value) // 64
        if isinstance(value, Tensor):
            self._tensor(value)
        elif type(value) is int:
            if value.bit_length() > LONGEST_NUMBER:
                raise ValueError(f"{self.name} is a number of {value.bit_length()} bits")
        elif type(value) not in ATOMS and not _allowed_by_user(value):
            raise ValueError(f"{self.name} is a {type(value).__name__}, which is not plain data")
        return 0

    def _tensor(self, tensor: Tensor) -> None:
        # Attributes of a tensor are stored too, and could take the place of its methods.
        for attribute in vars(tensor):
            if hasattr(Tensor, attribute):
                raise ValueError(f"{self.name} has an attribute {printable(attribute)!r} in place of that of a tensor")
        if tensor.layout is torch.strided and not tensor.is_meta:
            size = tensor.numel() * tensor.element_size()
            self.declared += size
            if size > self.largest[1]:
                self.largest = (self.name, size)


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    """The entries of a container with the names of their places."""
    if type(value) not in DICTIONARIES:
        yield from enumerate(value)
        return
    for key, entry in value.items():
        if not isinstance(key, KEYS):
            raise ValueError(f"a key of a dictionary is a {type(key).__name__}")
        if isinstance(key, tuple):  # other keys are no longer than the file
            yield "key", key
        yield key, entry


def _check_attributes(value: Any, name: str) -> None:
    """Refuse attributes that take the place of a dictionary's methods: they are stored with an `OrderedDict`."""
    attributes = getattr(value, "__dict__", {})
    for attribute in attributes:
        if hasattr(type(value), str(attribute)):
            raise ValueError(f"{name} has an attribute {printable(str(attribute))!r} in place of that of a dictionary")
    metadata = attributes.get("_metadata", {})  # torch's versions of the modules
    if not isinstance(metadata, dict):
        raise ValueError(f"the versions of the modules in {name} are not a dictionary")
    for versions in metadata.values():
        if not isinstance(versions, dict) or not isinstance(versions.get("version"), int | None):
            raise ValueError(f"the versions of the modules in {name} are not numbers")


def _allowed_by_user(value: Any) -> bool:
    """Return whether a value is of a class that this program, or the user, allows torch to read."""
    return any(type(value) is allowed for allowed in torch.serialization.get_safe_globals())

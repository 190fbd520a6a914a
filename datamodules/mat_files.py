"""Read lists in version 5 of MATLAB's format, which the published data sets use.

Their structure is checked before scipy reads them: scipy reserves memory by the sizes that a file declares, follows any
depth of nesting, and unpacks what is packed without limit.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from numpy.typing import NDArray

from datamodules.image_reading import reason
from datamodules.official_lists import DamagedListError

LARGEST_LIST = 2**25
"""Bytes, packed or unpacked; the largest of the official lists unpacks to about 10 million."""

DEEPEST = 8
"""Levels of cells and structures in one another; the official lists have 3."""

HEADER = 128
"""Bytes before the first element ("MAT-File Format", MathWorks, chapter 1)."""

INT8, INT32, UINT32, MATRIX, PACKED = 1, 5, 6, 14, 15
"""Kinds of elements."""

NUMBER_KINDS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13)
TEXT_KINDS = (*NUMBER_KINDS, 16, 17, 18)
"""Kinds of elements with numbers, and with text. scipy looks any other kind up in a table that does not have it, and
crashes."""

CELL, STRUCTURE, TEXT, NUMBERS = 1, 2, 4, range(6, 16)
"""Classes of matrices that lists are made of. The others are objects, functions and sparse matrices."""

COMPLEX = 0x800
"""A flag of a matrix of numbers: its imaginary part follows."""


class Element(NamedTuple):
    """An element of a file: its kind, and its content."""

    kind: int
    content: memoryview


def read_mat(path: Path, *fields: str) -> list[NDArray[Any]]:
    """Variables of a MATLAB file as flat arrays.

    Raises:
        DamagedListError: if it cannot be read, is not a list, or lacks one of them.
    """
    try:
        if path.stat().st_size > LARGEST_LIST:
            raise DamagedListError(f"it has {path.stat().st_size} bytes, more than any list")
        stored = path.read_bytes()
        _check_structure(memoryview(stored))
        content = scipy.io.loadmat(io.BytesIO(stored), squeeze_me=True, variable_names=fields)
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise DamagedListError(f"{path} cannot be read: {reason(error)}") from error
    for field in fields:
        if field not in content:
            raise DamagedListError(f"{path} has no variable {field}")
    return [np.atleast_1d(content[field]) for field in fields]


def _check_structure(content: memoryview) -> None:
    mark = bytes(content[HEADER - 2 : HEADER])
    if mark not in (b"IM", b"MI"):
        raise DamagedListError("it is not a MATLAB file of version 5 to 7 (save -v7 in MATLAB writes one)")
    order = "<" if mark == b"IM" else ">"
    if struct.unpack(f"{order}H", content[HEADER - 4 : HEADER - 2]) != (0x0100,):
        raise DamagedListError("it is not a MATLAB file of version 5 to 7 (save -v7 in MATLAB writes one)")
    unpacked = 0
    for element in _elements(content[HEADER:], order):
        if element.kind == PACKED:
            inner = _unpack(element.content, LARGEST_LIST - unpacked)
            unpacked += len(inner)
            for matrix in _elements(memoryview(inner), order):
                _check_matrix(matrix, order, depth=1)
        else:
            _check_matrix(element, order, depth=1)


def _unpack(packed: memoryview, limit: int) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(packed, limit + 1)
    if len(content) > limit:
        raise DamagedListError(f"it unpacks to more than {LARGEST_LIST} bytes")
    return content


def _elements(content: memoryview, order: str) -> Iterator[Element]:
    """The elements that lie one after the other in a content."""
    place = 0
    while place < len(content):
        if len(content) - place < 8:
            raise DamagedListError("it is cut off")
        kind, size = struct.unpack(f"{order}II", content[place : place + 8])
        start = place + 8
        if kind >> 16:  # a short one has its size in the upper half of its kind, and its content in the next 4 bytes
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            if size > 4:
                raise DamagedListError("an element has a wrong size")
        if size > len(content) - start:
            raise DamagedListError("it is cut off, or an element is larger than the file")
        yield Element(kind, content[start : start + size])
        # Elements begin at multiples of 8 bytes, except for those that follow a packed one.
        place = start + size
        if kind != PACKED:
            place += -place % 8


def _check_matrix(element: Element, order: str, depth: int) -> None:
    """Check a matrix and those within it.

    A matrix has no more elements than bytes, so that reading it is bounded, and consists of the parts that its class
    has and of no others, because scipy reads them one after the other and does not compare their sizes with its own.
    """
    if element.kind != MATRIX or len(element.content) % 8:
        raise DamagedListError("it holds something that is not a matrix")
    if depth > DEEPEST:
        raise DamagedListError(f"it is nested deeper than {DEEPEST} levels")
    if not element.content:  # an empty cell
        return
    elements = list(_elements(element.content, order))
    if len(elements) < 3:
        raise DamagedListError("a matrix has no size")
    flags, sizes, name, *parts = elements
    if (
        flags.kind != UINT32
        or len(flags.content) != 8
        or sizes.kind != INT32
        or len(sizes.content) < 8
        or name.kind != INT8
    ):
        raise DamagedListError("a matrix has no size")
    number = _number_of_elements(sizes, order, len(element.content))
    kind = struct.unpack(f"{order}I", flags.content[:4])[0]
    for part in _inner_matrices(kind, number, parts, order):
        _check_matrix(part, order, depth + 1)


def _number_of_elements(sizes: Element, order: str, most: int) -> int:
    number = 1
    for size in struct.unpack(f"{order}{len(sizes.content) // 4}i", sizes.content):
        number *= size
        if size < 0 or number > most:
            raise DamagedListError("a matrix says that it is larger than the file")
    return number


def _inner_matrices(kind: int, number: int, parts: list[Element], order: str) -> list[Element]:
    """The matrices within a matrix of cells or structures; a matrix of text or numbers has none."""
    name = kind & 0xFF
    if name == CELL:
        expected, inner = number, parts
    elif name == STRUCTURE:
        expected, inner = 2 + number * _number_of_fields(parts, order), parts[2:]
    elif name == TEXT or name in NUMBERS:
        expected, inner = 1, []
        if kind & COMPLEX:
            expected = 2
        known = TEXT_KINDS if name == TEXT else NUMBER_KINDS
        if any(part.kind not in known for part in parts):
            raise DamagedListError("a matrix of text or numbers holds something else")
    else:
        raise DamagedListError("it holds an object, a function or a sparse matrix, which no list does")
    if len(parts) != expected:
        raise DamagedListError(f"a matrix has {len(parts)} parts instead of {expected}")
    return inner


def _number_of_fields(parts: list[Element], order: str) -> int:
    if [part.kind for part in parts[:2]] != [INT32, INT8] or len(parts[0].content) != 4:
        raise DamagedListError("a structure has no fields")
    length = struct.unpack(f"{order}i", parts[0].content)[0]
    if length < 1 or len(parts[1].content) % length:
        raise DamagedListError("the names of the fields of a structure are damaged")
    return len(parts[1].content) // length

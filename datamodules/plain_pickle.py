"""Read pickles of plain data: nothing in the file is executed.

Pickles name functions to be called, and Python's own reader calls whatever they name. Here only the names that numbers,
texts and NumPy arrays need are known, and they stand for small classes of this module.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.console.text import printable, shortened
from datamodules.image_reading import reason

LARGEST_FILE = 2**30
"""Bytes; the largest file of CIFAR has 155 million."""


class UnsafePickleError(ValueError):
    """A pickle that is damaged, or holds anything but plain data."""


class PickledType:
    """Stands for ``numpy.dtype``: the name of a type, such as ``u1``."""

    def __init__(self, name: str, *_: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """The state has the order of bytes, which matters to no type of one byte."""


class PickledArray:
    """Stands for a NumPy array, and for the function that makes one from nothing but its kind.

    NumPy's own are not used, since their state is not checked: a prepared one reads any place of the memory.
    """

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.type: Any = None
        self.content: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, fortran_order, self.content = state
        if fortran_order:
            raise UnsafePickleError("an array is stored by columns")

    def bytes_of_images(self, columns: int) -> NDArray[np.uint8]:
        """The array, which must have rows of `columns` bytes.

        Raises:
            UnsafePickleError: if it is another one, or its shape is not that of its content.
        """
        content = self.content
        if isinstance(content, str):  # Python 2 did not distinguish text from bytes
            content = content.encode("latin1")
        is_bytes = isinstance(self.type, PickledType) and self.type.name in ("u1", "|u1", "uint8")
        if not self._has_columns(columns) or not is_bytes:
            raise UnsafePickleError(f"an array does not hold images of {columns} bytes")
        if not isinstance(content, (bytes, bytearray)) or len(content) != math.prod(self.shape):
            raise UnsafePickleError("the content of an array is not as large as its shape says")
        return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(-1, columns)

    def _has_columns(self, columns: int) -> bool:
        if not isinstance(self.shape, tuple) or len(self.shape) != 2:
            return False
        return all(isinstance(size, int) for size in self.shape) and self.shape[1] == columns


class PickledBuffer(PickledArray):
    """Stands for the function that makes a NumPy array from bytes, in pickles of protocol 5."""

    def __init__(self, content: Any, kind: Any, shape: Any, order: str = "C") -> None:
        super().__init__()
        self.__setstate__((1, shape, kind, order != "C", content))


class PickledBytes(bytes):
    """Stands for ``codecs.encode``, by which Python 3 writes bytes that Python 2 can read."""

    def __new__(cls, text: str, _: str) -> PickledBytes:
        return super().__new__(cls, text.encode("latin1"))

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickleError("bytes have no state")


KNOWN: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): PickledType,
    ("numpy.core.multiarray", "_reconstruct"): PickledArray,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): PickledArray,  # NumPy 2
    ("numpy.core.numeric", "_frombuffer"): PickledBuffer,
    ("numpy._core.numeric", "_frombuffer"): PickledBuffer,
    ("_codecs", "encode"): PickledBytes,
}
"""Stand-ins for the functions and classes that a pickle may name."""


class _PlainUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's unpickler in Python: the one in C reserves as much memory as the file declares.

    (See https://github.com/python/cpython/issues/115952.)
    """

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in KNOWN:
            called = printable(shortened(f"{module}.{name}", 80))
            raise UnsafePickleError(f"it names {called}, which is not plain data; nothing was executed")
        return KNOWN[module, name]


def read_plain_pickle(content: bytes, skip: int = 0) -> Any:
    """Read the first pickle of some bytes, or a later one: numbers, texts, lists, dictionaries and `PickledArray`.

    Args:
        content: one pickle, or several one after the other.
        skip: number of pickles before the one that is returned.

    Raises:
        UnsafePickleError: if it is damaged, or names functions that it should not.
    """
    stream = io.BytesIO(content)
    try:
        for _ in range(skip):
            _PlainUnpickler(stream, encoding="latin1").load()
        return _PlainUnpickler(stream, encoding="latin1").load()
    except UnsafePickleError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise UnsafePickleError(f"it is damaged: {reason(error)}") from error


def read_bounded(path: Path, largest: int = LARGEST_FILE) -> bytes:
    """The content of a file whose size must be reasonable.

    Raises:
        UnsafePickleError: if it is.
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    if size > largest:
        raise UnsafePickleError(f"it has {size} bytes, more than any such file")
    return path.read_bytes()

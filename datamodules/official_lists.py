"""Read the lists of files and labels that come with the data sets. They are data: nothing in them is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from app.console.text import printable, shortened
from datamodules.image_files import Files, Split

LARGEST_TEXT = 2**26
"""Bytes; the largest of the official lists has less than a million."""

LONGEST_NAME = 1024
"""Characters of the name of a file or class."""


class DamagedListError(ValueError):
    """A list that does not hold what it should."""


@dataclass
class Lists:
    """The contents of the official lists of a data set.

    Attributes:
        class_names: one name per label.
        files: image files and labels of the splits ``train`` and ``val``.
    """

    class_names: list[str]
    files: dict[Split, Files]


class Value(NamedTuple):
    """A value of a list in text, and the line it stands in, from 1."""

    text: str
    line: int


def read_numbered_lines(path: Path) -> dict[int, Value]:
    """The values of a list whose lines are a number and a value, by their numbers.

    Raises:
        DamagedListError: with the file and the line, if one is something else or has the number of another.
    """
    values: dict[int, Value] = {}
    for line, text in enumerate(_read_lines(path), 1):
        parts = text.split(maxsplit=1)
        if not parts:
            continue
        if len(parts) != 2 or not _is_number(parts[0]):
            raise DamagedListError(f"{path} has a line {shown(text)}, line {line}: expected a number and a value")
        number = int(parts[0])
        if number in values:
            raise DamagedListError(f"{path} has the number {number} twice, lines {values[number].line} and {line}")
        values[number] = Value(parts[1].strip(), line)
    return values


def _read_lines(path: Path) -> list[str]:
    """The lines of a text, whichever system has written it.

    Raises:
        DamagedListError: with the file and the line, if it is not UTF-8.
    """
    if path.stat().st_size > LARGEST_TEXT:
        raise DamagedListError(f"{path} has {path.stat().st_size} bytes, more than any list")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # Windows begins a text with a mark of its encoding
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DamagedListError(
            f"{path} is not a text in UTF-8: line {line} has the byte {content[error.start]:#04x}"
        ) from error
    # Not splitlines, which also splits at characters that a name may have.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _is_number(text: str) -> bool:
    """Whether a text is a number from 0 in the digits of ASCII: Python takes other digits too, and endless ones."""
    return text.isascii() and text.isdecimal() and len(text) <= 9


def shown(value: object) -> str:
    """A value of a list as a message shows it: short, and without control characters."""
    if isinstance(value, np.generic):  # whose text has the name of its type
        value = value.item()
    return shortened(printable(repr(value)), 80)


def listed_file(name: Any, folder: str, path: Path) -> str:
    """An image of a list, as a path below the root.

    Args:
        name: what the list says.
        folder: folder below the root that the name is relative to.
        path: the list.

    Raises:
        DamagedListError: if it is not the name of a file inside that folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or len(name) > LONGEST_NAME:
        raise DamagedListError(f"{path} has {shown(name)} for the name of an image")
    file = PurePosixPath(name)
    # A list may come from anywhere, and what it names is opened.
    if file.is_absolute() or ".." in file.parts:
        raise DamagedListError(f"{path} lists {shown(name)}, which lies outside of its folder of images")
    return (PurePosixPath(folder) / file).as_posix()


def class_name(name: Any, path: Path) -> str:
    """The name of a class in a list.

    Raises:
        DamagedListError: if it is not a name.
    """
    if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
        raise DamagedListError(f"{path} has {shown(name)} for the name of a class")
    return name


def label_from_one(label: Any, classes: int, where: Path | str) -> int:
    """A label counted from 0, where the official lists count from 1.

    Args:
        label: what the list says: a number, or a text that is one.
        classes: their number.
        where: the list, or the list and the line.

    Raises:
        DamagedListError: if it is not a whole number, or out of range.
    """
    if isinstance(label, str):
        whole = _is_number(label.removeprefix("-"))
    else:
        whole = isinstance(label, (int, float, np.integer, np.floating)) and float(label).is_integer()
    if not whole:
        raise DamagedListError(f"{where} has the label {shown(label)}, expected a whole number")
    if not 1 <= int(label) <= classes:
        raise DamagedListError(f"{where} has the label {shown(int(label))}, expected 1 to {classes}")
    return int(label) - 1


def labels_from_one(labels: Iterable[Any], classes: int, path: Path) -> list[int]:
    """Labels counted from 0, of a list that counts from 1.

    Raises:
        DamagedListError: if one is not a whole number, or out of range.
    """
    return [label_from_one(label, classes, path) for label in labels]


def check_each_file_once(lists: Lists, root: Path) -> None:
    """Check that no image is listed twice, neither in one split nor in both.

    Raises:
        DamagedListError: if one is.
    """
    seen: set[str] = set()
    for files in lists.files.values():
        for file, _ in files:
            if file in seen:
                raise DamagedListError(f"the lists in {root} name the image {shown(file)} twice")
            seen.add(file)

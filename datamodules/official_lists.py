"""Read the lists of files and labels that come with the data sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from datamodules.image_files import Files, Split
from datamodules.image_reading import reason


class DamagedListError(ValueError):
    """A list that does not hold what it should."""


@dataclass
class Lists:
    """The content of the official lists of a data set.

    Attributes:
        class_names: one name a label.
        files: image files and labels of the splits ``train`` and ``val``.
    """

    class_names: list[str]
    files: dict[Split, Files]


def read_mat(path: Path, *fields: str) -> list[NDArray[Any]]:
    """Variables of a MATLAB file as flat arrays.

    Raises:
        DamagedListError: if it cannot be read, or lacks one of them.
    """
    try:
        content = scipy.io.loadmat(path, squeeze_me=True)
    except Exception as error:  # a damaged file makes scipy raise nearly anything
        raise DamagedListError(f"{path} cannot be read: {reason(error)}") from error
    for field in fields:
        if field not in content:
            raise DamagedListError(f"{path} has no variable {field}")
    return [np.atleast_1d(content[field]) for field in fields]


def labels_from_one(labels: Iterable[Any], classes: int, path: Path) -> list[int]:
    """Labels counted from 0, where the official lists count from 1.

    Raises:
        DamagedListError: if one is out of range.
    """
    counted = []
    for label in labels:
        if not 1 <= int(label) <= classes:
            raise DamagedListError(f"{path} has the label {int(label)}, expected 1 to {classes}")
        counted.append(int(label) - 1)
    return counted

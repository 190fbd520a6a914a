"""Data sets in class folders: the classes are the sub-folders of a folder, in the order of their names."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from app.console.text import printable
from datamodules.folders import read_folder, walk_images
from datamodules.image_files import Files

EVALUATION_FOLDERS = ("val", "test")
"""Names of the folder that holds the images for evaluation."""

SHOWN = 5
"""Paths that a message names; it only counts the rest."""


class UnknownClassError(ValueError):
    """A class folder that the training set does not have."""


@dataclass(frozen=True)
class ClassFolders:
    """The contents of the class folders in a folder.

    Attributes:
        files: the images in class folders, with the index of their class.
        empty: class folders that hold no images, or are missing.
        deeper: for each sub-folder of a class folder that holds images, which are not used, the first of them.
        others: files that are not images, or are not in a class folder.
    """

    files: Files = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    deeper: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def without_images(self) -> str:
        """Name the class folders that hold no images, and where there are some instead."""
        text = f"no images in {some_paths(self.empty)}"
        if self.deeper:  # often the root is the folder above the right one
            text += f", but one level deeper: {some_paths(self.deeper)}"
        return text

    def report(self, split: str) -> None:
        """Name what one may have expected to be used, and is not.

        Args:
            split: what the images are for, "training" or "validation".
        """
        if self.empty:
            rank_zero_warn(f"no {split} images in {some_paths(self.empty)}")
        if self.deeper:
            rank_zero_warn(f"images below class folders, one level deeper, are not used: {some_paths(self.deeper)}")
        if self.others:
            rank_zero_info(f"left out, because they are not images in class folders: {some_paths(self.others)}")


def some_paths(paths: list[Path]) -> str:
    """A few paths by name, the rest by number."""
    text = printable(", ".join(map(str, paths[:SHOWN])))
    if len(paths) > SHOWN:
        text += f" and {len(paths) - SHOWN} more"
    return text


def read_class_folders(root: Path, folder: Path, class_names: list[str]) -> ClassFolders:
    """Read the class folders of `folder`; the names of image files are relative to the root.

    Raises:
        UnknownClassError: if a folder is not one of the classes.
    """
    found, content = ClassFolders(), read_folder(folder)
    for name in content.folders:
        if name not in class_names:
            raise UnknownClassError(f"{folder / name} is a class that train/ does not have")
    found.others.extend(folder / name for name in [*content.images, *content.others])
    present = set(content.folders)
    for label, name in enumerate(class_names):
        if name in present:
            _read_class(root, folder / name, label, found)
        else:
            found.empty.append(folder / name)
    return found


def _read_class(root: Path, folder: Path, label: int, found: ClassFolders) -> None:
    content = read_folder(folder)
    place = folder.relative_to(root).as_posix()
    found.files.extend((f"{place}/{image}", label) for image in content.images)
    found.others.extend(folder / name for name in content.others)
    if not content.images:
        found.empty.append(folder)
    for name in content.folders:
        first = next(walk_images(folder / name), None)
        if first is not None:
            found.deeper.append(first)


def first_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of some folders that exists."""
    for name in names:
        if (root / name).is_dir():
            return root / name
    return None


def split_by_class(files: Files, fraction: float, seed: int) -> tuple[Files, Files]:
    """Split images in two: a fraction of each class is for validation, the rest for training.

    In each class, the images whose hashes come first are for validation. The hash of a seed and a name depends neither
    on the order of the file system nor on other images. A class of two images or more has at least one on each side.

    Returns:
        The images for training, and those for validation.
    """
    by_class: dict[int, list[str]] = {}
    for file, label in files:
        by_class.setdefault(label, []).append(file)
    training: Files = []
    validation: Files = []
    for label, of_class in by_class.items():
        number = round(len(of_class) * fraction)
        # At least one image on each side; the only image of a class is for training.
        number = min(max(number, 1), len(of_class) - 1)
        in_validation = set(sorted(of_class, key=lambda file: _hash(seed, file))[:number])
        for file in of_class:
            side = validation if file in in_validation else training
            side.append((file, label))
    return training, validation


def _hash(seed: int, file: str) -> bytes:
    return hashlib.blake2b(f"{seed}/".encode() + os.fsencode(file)).digest()

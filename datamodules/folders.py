"""List image files in folders, by the same rules for training and for prediction.

An image is a file whose ending Pillow can read. Hidden entries (``.DS_Store``, ``._photo.jpg``) are left out, and links
are followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class FolderContent:
    """The visible entries of a folder: their names, sorted.

    Attributes:
        images: files that are images by their ending.
        folders: folders, and links to folders.
        others: everything else.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def read_folder(folder: Path) -> FolderContent:
    """Read the entries of one folder, without the content of its sub-folders."""
    content = FolderContent()
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                content.folders.append(entry.name)
            elif _is_image(entry):
                content.images.append(entry.name)
            else:
                content.others.append(entry.name)
    return content


def walk_images(folder: Path, parents: tuple[str, ...] = ()) -> Iterator[Path]:
    """All images in a folder and its sub-folders, as paths below `folder`.

    Args:
        folder: where to begin.
        parents: real paths of the folders above, by which a link back to one of them is recognised and left out.
    """
    # Only the folders above are compared: two links to the same folder are both followed, as in training.
    here = os.path.realpath(folder)
    if here in parents:
        return
    content = read_folder(folder)
    for name in content.images:
        yield folder / name
    for name in content.folders:
        yield from walk_images(folder / name, (*parents, here))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a folder of another machine that does not answer
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    if os.path.splitext(entry.name)[1].lower() not in _image_endings():  # noqa: PTH122 - a million files
        return False
    # A broken link counts, so that it is reported when it is read. A pipe does not: opening it would block forever.
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # a link to itself
        return True


@cache
def _image_endings() -> frozenset[str]:
    Image.init()
    return frozenset(ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN)

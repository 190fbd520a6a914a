"""The data set of labelled image files, some of which may turn out to be unreadable."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from app.console.text import printable
from datamodules.image_reading import UnreadableImageError, read_image

Split = Literal["train", "val", "test"]

Files = list[tuple[str, int]]
"""Pairs of an image file, relative to the root of the data set, and its label."""

OnUnreadable = Literal["error", "skip"]
"""The policy for an image that cannot be read: stop the run, or leave the image out of its batch."""


class ImageFiles(Dataset[tuple[Tensor, int] | None]):
    """Image files with labels.

    Args:
        root: folder that the names of the files are relative to.
        files: pairs of a file and its label.
        transform: from a Pillow image to a tensor.
        on_unreadable: ``error`` raises at an image that cannot be read; ``skip`` gives ``None`` in its place.
        apply_orientation: turn images upright that their camera has marked otherwise.
        shared: whether loader processes read the images; a container may have little memory that they can share.

    Attributes:
        unreadable: one flag per file, set once it could not be read; in memory that loader processes share.
    """

    def __init__(
        self,
        root: Path,
        files: Files,
        transform: Callable[[Image.Image], Tensor],
        on_unreadable: OnUnreadable = "error",
        apply_orientation: bool = False,
        shared: bool = True,
    ) -> None:
        self.apply_orientation = apply_orientation
        self.root, self.transform, self.on_unreadable = root, transform, on_unreadable
        # One array instead of a million strings: their reference counts would unshare the memory of forked processes.
        self.files: NDArray[np.bytes_] = np.array([os.fsencode(file) for file, _ in files])
        self.labels = torch.tensor([label for _, label in files])
        self.unreadable = torch.zeros(len(files), dtype=torch.bool)
        if shared:
            self.unreadable.share_memory_()

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(self.files[index])

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        path = self.path(index)
        try:
            image = read_image(path, self.apply_orientation)
        except UnreadableImageError as error:
            if self.on_unreadable != "skip":
                raise UnreadableImageError(
                    f"unreadable image {printable(str(path))}: {error} (data.on_unreadable skip leaves it out)"
                ) from error
            # Loader processes live for several epochs, and each image is named only in the first.
            if not self.unreadable[index]:
                print(f"unreadable, skipped: {printable(str(path))}: {error}", file=sys.stderr, flush=True)
            self.unreadable[index] = True
            return None
        return self.transform(image), int(self.labels[index])

    def labels_without_images(self) -> list[int]:
        """The labels none of whose images could be read."""
        readable = self.labels[~self.unreadable].unique()
        present = self.labels.unique()
        return present[~torch.isin(present, readable)].tolist()


def collate_readable(items: list[tuple[Tensor, int] | None]) -> Any:
    """A batch of the images that could be read ``(B, 3, H, W)`` and their labels ``(B,)``."""
    readable = [item for item in items if item is not None]
    if not readable:
        raise UnreadableImageError(f"none of the {len(items)} images of a batch can be read: see the lines above")
    return default_collate(readable)

"""The data set of `predict`: all images of a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.folders import walk_images
from datamodules.image_reading import UnreadableImageError, read_image


class PredictionItem(NamedTuple):
    """An image of a folder, or the reason why it could not be read.

    Attributes:
        image: ``(3, H, W)``, or ``None`` if the file could not be read.
        file: path of the file.
        error: why it could not be read, or ``None``.
    """

    image: Tensor | None
    file: str
    error: str | None


class PredictionFolder(Dataset[PredictionItem]):
    """All images in a folder and its sub-folders; an unreadable file is an item without an image.

    Args:
        folder: the folder.
        transform: from a Pillow image to a tensor.
        apply_orientation: turn images upright that their camera has marked otherwise.

    Raises:
        FileNotFoundError: if the folder is missing or holds no images.
    """

    def __init__(
        self, folder: str, transform: Callable[[Image.Image], Tensor], apply_orientation: bool = False
    ) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"data.predict_folder {folder} is not a folder")
        self.files = sorted(walk_images(root))
        if not self.files:
            raise FileNotFoundError(f"data.predict_folder {folder} holds no images")
        self.transform, self.apply_orientation = transform, apply_orientation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> PredictionItem:
        path = self.files[index]
        try:
            image = read_image(path, self.apply_orientation)
        except UnreadableImageError as error:
            return PredictionItem(None, str(path), str(error))
        return PredictionItem(self.transform(image), str(path), None)


def collate_predictions(items: list[PredictionItem]) -> dict[str, Any]:
    """A batch: ``images`` (B, 3, H, W), their ``files``, and ``errors``, pairs of a file and why it is unreadable."""
    images: list[Tensor] = []
    files: list[str] = []
    errors: list[tuple[str, str]] = []
    for image, file, error in items:
        if image is not None:
            images.append(image)
            files.append(file)
        if error is not None:
            errors.append((file, error))
    if not images:  # torch.stack takes no empty list
        return {"images": torch.zeros(0, 3, 1, 1), "files": files, "errors": errors}
    return {"images": torch.stack(images), "files": files, "errors": errors}

"""What all data modules share: global batch size, loaders, and prediction on a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class ImageDataModule(pl.LightningDataModule):
    """Base of the data modules.

    A subclass sets `class_names`, `train_set`, `val_set` and `test_set` in `setup`, and defines `evaluate_transform`.

    Args:
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        predict_folder: folder of images for `predict`, searched recursively.
    """

    class_names: list[str]
    train_set: Dataset[Any]
    val_set: Dataset[Any]
    test_set: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int, predict_folder: str | None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must not be negative, got {num_workers}")
        self.batch_size, self.num_workers, self.predict_folder = batch_size, num_workers, predict_folder

    def evaluate_transform(self, image: Image.Image) -> Tensor:
        """An image as the network sees it in validation, ``(3, H, W)``."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train_set, train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test_set)

    def predict_dataloader(self) -> DataLoader[Any]:
        if self.predict_folder is None:
            raise ValueError("predict needs a folder of images: --data.predict_folder FOLDER")
        return self._loader(FolderOfImages(self.predict_folder, self.evaluate_transform), collate_fn=collate_images)

    def _loader(self, dataset: Dataset[Any], *, train: bool = False, **options: Any) -> DataLoader[Any]:
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if self.batch_size % world_size:
            raise ValueError(f"data.batch_size {self.batch_size} does not divide among {world_size} processes")
        images = len(dataset)  # type: ignore[arg-type]
        if train and images < self.batch_size:
            raise ValueError(f"the training set has {images} images, fewer than data.batch_size {self.batch_size}")
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world_size,
            shuffle=train,
            drop_last=train,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **options,
        )


class FolderOfImages(Dataset[tuple[Tensor | None, str, str | None]]):
    """All files below a folder whose ending Pillow can read; an unreadable one is an item without image.

    Raises:
        FileNotFoundError: if the folder is missing or holds no such file.
    """

    def __init__(self, folder: str, transform: Any) -> None:
        Image.init()
        endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"data.predict_folder {folder} is no folder")
        self.files = sorted(path for path in root.rglob("*") if path.suffix.lower() in endings and path.is_file())
        if not self.files:
            raise FileNotFoundError(f"data.predict_folder {folder} holds no images")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str, str | None]:
        """The image, its file, and ``None``; or ``None``, the file, and what is wrong with it."""
        path = self.files[index]
        try:
            with Image.open(path) as image:
                return self.transform(_with_8_bits(image)), str(path), None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return None, str(path), " ".join(str(error).split()) or type(error).__name__


def _with_8_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey levels instead of scaling them."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def collate_images(items: list[tuple[Tensor | None, str, str | None]]) -> dict[str, Any]:
    """A batch: ``images`` (B, 3, H, W), their ``files``, and ``errors``, pairs of a file and what is wrong with it."""
    images = [image for image, _, _ in items if image is not None]
    return {
        "images": torch.stack(images) if images else torch.zeros(0, 3, 1, 1),
        "files": [file for image, file, _ in items if image is not None],
        "errors": [(file, error) for _, file, error in items if error is not None],
    }

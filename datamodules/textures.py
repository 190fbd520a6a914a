"""The built-in data set for demonstrations: patches of six photographs that ship with scikit-image."""

from __future__ import annotations

from functools import cache

import numpy as np
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import TensorDataset

from datamodules.base import ImageDataModule

PHOTOGRAPHS = ("brick", "grass", "gravel", "immunohistochemistry", "hubble_deep_field", "moon")
SIZE = 512
"""Side in pixels of the grey square that is cut from the centre of every photograph."""

REGIONS = {"train": (0, 320, 16), "val": (336, 416, 8), "test": (432, 512, 8)}
"""First column, end column and step of the patches of each split: gaps of 16 columns, so no pixel is shared."""


class Textures(ImageDataModule):
    """Grey patches of six photographs, labelled by the photograph, each standardised on its own, always the same.

    Training patches come from the left of each photograph, validation and test patches from two strips on the right.
    The task is to recognise the textures of six photographs: a demonstration that runs anywhere, not a benchmark.

    Args:
        batch_size: images per step over all processes together.
        patch_size: side of a patch in pixels, 16 to 80.
        noise: standard deviation of the white noise that is added to every patch, whose own is 1; 0: none. The noise is
            always the same.
        num_workers: loader processes per training process; the patches lie in memory, so 0 is fast.
        predict_folder: folder of images for `predict`, searched recursively; the centre of each is used.
    """

    def __init__(
        self,
        batch_size: int = 64,
        patch_size: int = 48,
        noise: float = 0.0,
        num_workers: int = 0,
        predict_folder: str | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, predict_folder)
        if not 16 <= patch_size <= 80:
            raise ValueError(f"data.patch_size must lie between 16 and 80 pixels, got {patch_size}")
        if not 0 <= noise < float("inf"):
            raise ValueError(f"data.noise must be a number of at least 0, got {noise}")
        self.patch_size, self.noise = patch_size, noise
        self.class_names = list(PHOTOGRAPHS)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_set = self._read("train")
        if stage in ("fit", "validate"):
            self.val_set = self._read("val")
        if stage == "test":
            self.test_set = self._read("test")

    def _read(self, split: str) -> TensorDataset:
        # The noise is part of the data: its seed depends on the split, not on the run.
        generator = torch.Generator().manual_seed(list(REGIONS).index(split))
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for label, name in enumerate(PHOTOGRAPHS):
            patches = _patches(_grey_square(name), split, self.patch_size)
            if self.noise:
                patches = _with_noise(patches, self.noise, generator)
            images.append(patches)
            labels.append(torch.full((len(patches),), label))
        return TensorDataset(torch.cat(images), torch.cat(labels))

    def evaluate_transform(self, image: Image.Image) -> Tensor:
        """The centre of an image, ``(3, patch_size, patch_size)``; a smaller image is enlarged first."""
        grey = image.convert("L")
        if min(grey.size) < self.patch_size:
            return _standardise(_tensor(ImageOps.fit(grey, (self.patch_size, self.patch_size))))
        left, top = (grey.width - self.patch_size) // 2, (grey.height - self.patch_size) // 2
        return _standardise(_tensor(grey.crop((left, top, left + self.patch_size, top + self.patch_size))))


@cache
def _grey_square(name: str) -> Image.Image:
    pixels: NDArray[np.uint8] = getattr(skimage.data, name)()
    photograph = Image.fromarray(pixels).convert("L")
    left, top = (photograph.width - SIZE) // 2, (photograph.height - SIZE) // 2
    return photograph.crop((left, top, left + SIZE, top + SIZE))


def _tensor(grey: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(grey, dtype=np.float32) / 255)


def _patches(photograph: Image.Image, split: str, size: int) -> Tensor:
    """All patches of a split, ``(B, 3, size, size)``."""
    start, end, step = REGIONS[split]
    strip = _tensor(photograph)[:, start:end]
    patches = strip.unfold(0, size, 2 * step).unfold(1, size, step)
    return _standardise(patches.flatten(0, 1))


def _with_noise(patches: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    grey = patches[:, 0]
    return _standardise(grey + deviation * torch.randn(grey.shape, generator=generator))


def _standardise(patches: Tensor) -> Tensor:
    """Grey ``(..., H, W)`` to three equal channels with mean 0 and standard deviation 1 for each patch."""
    patches = patches - patches.mean((-2, -1), keepdim=True)
    deviation = patches.std((-2, -1), keepdim=True)
    # one grey level in 255: a flat patch stays flat instead of becoming amplified round-off
    patches = patches / deviation.clamp_min(1 / 255)
    return patches.unsqueeze(-3).expand(*patches.shape[:-2], 3, *patches.shape[-2:]).contiguous()

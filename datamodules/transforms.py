"""Transforms from a decoded image to the tensor that the network sees: size, augmentation, normalisation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torchvision.transforms import v2

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue over ImageNet's training images, on a scale of 0 to 1; what torchvision's weights expect."""

RESIZED_TO_CROPPED = 256 / 224
"""The side of an image before it is cropped, over that of the crop: the usual ratio for ImageNet."""


def to_network(
    sizing: Sequence[v2.Transform],
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Callable[[Any], Any] | None = None,
) -> v2.Compose:
    """Build the whole transform from a Pillow image or an 8-bit tensor to a normalised tensor ``(3, H, W)``.

    Args:
        sizing: resizes, crops and flips an 8-bit image ``(3, H, W)``.
        mean: of each channel, on a scale of 0 to 1.
        std: standard deviation of each channel.
        augmentation: takes an 8-bit image of the final size, and returns one.
    """
    steps: list[Callable[[Any], Any]] = [v2.PILToTensor(), *sizing]
    if augmentation is not None:
        steps.append(SeededAugmentation(augmentation))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])


class SeededAugmentation:
    """A user's augmentation whose random numbers follow torch's generator even if it draws them from another.

    Torch's generator is seeded for each image, so that a resumed run draws the same numbers. Libraries other than
    torchvision draw from Python's and NumPy's generators: these are seeded from torch's, and restored afterwards.
    """

    def __init__(self, augmentation: Callable[[Any], Any]) -> None:
        self.augmentation = augmentation

    def __call__(self, image: Any) -> Any:
        # NumPy accepts only seeds of 32 bits that are not negative.
        seed = int(torch.randint(2**31, ()))
        with isolate_rng(include_cuda=False):
            random.seed(seed)
            np.random.seed(seed)
            return self.augmentation(image)


def crop_to_square(size: int, random_place: bool) -> list[v2.Transform]:
    """Resize the shorter side to 8/7 of `size`, then cut out a square of `size`, in the centre or at random."""
    crop = v2.RandomCrop(size) if random_place else v2.CenterCrop(size)
    return [v2.Resize(round(size * RESIZED_TO_CROPPED)), crop]


def squeeze_to_square(size: int) -> list[v2.Transform]:
    """Resize the whole image to a square, whatever its shape."""
    return [v2.Resize((size, size))]

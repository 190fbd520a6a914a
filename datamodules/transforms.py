"""From a decoded image to the tensor that the network sees: size, augmentation, normalisation."""

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
    """The whole transform, from a Pillow image or an 8-bit tensor to a normalised tensor ``(3, H, W)``.

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
    """A user's augmentation, whose random numbers follow torch's generator, also where they come from another one.

    The generator of torch is seeded for each image, so that a resumed run draws the same numbers. Libraries other than
    torchvision draw from Python's and NumPy's generators: these are seeded from torch's, and put back afterwards.
    """

    def __init__(self, augmentation: Callable[[Any], Any]) -> None:
        self.augmentation = augmentation

    def __call__(self, image: Any) -> Any:
        # NumPy takes no negative seed and none above 32 bits.
        seed = int(torch.randint(2**31, ()))
        with isolate_rng(include_cuda=False):
            random.seed(seed)
            np.random.seed(seed)
            return self.augmentation(image)


def crop_to_square(size: int, random_place: bool) -> list[v2.Transform]:
    """The shorter side is resized to 8/7 of `size`; then a square of `size` is cut out, in the centre or at random."""
    crop = v2.RandomCrop(size) if random_place else v2.CenterCrop(size)
    return [v2.Resize(round(size * RESIZED_TO_CROPPED)), crop]


def squeeze_to_square(size: int) -> list[v2.Transform]:
    """The whole image is resized to a square, whatever its shape."""
    return [v2.Resize((size, size))]

"""Feature maps of real photographs, which ship with scikit-image.

Shapes: B photographs, d channels.
"""

from __future__ import annotations

import numpy as np
import skimage.data
import torch
from torch import Tensor, nn

PHOTOGRAPHS = ("brick", "grass", "gravel", "moon", "immunohistochemistry", "hubble_deep_field")
"""Pictures in scikit-image's own package: nothing is downloaded."""


def feature_maps(side: int) -> Tensor:
    """ReLU feature maps of the photographs, ``(6, 32, side, side)`` float64.

    They are the output of three convolutions with fixed random weights on the centre of each photograph, in grey.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # fixes the weights; the caller's random state is restored
        network = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        photographs = torch.stack([_photograph(name, 16 * side) for name in PHOTOGRAPHS])
        features: Tensor = network(photographs)
    return features.double()


def _photograph(name: str, size: int) -> Tensor:
    """The centre of a photograph in grey, standardised, ``(1, size, size)`` float32.

    Raises:
        OSError: if scikit-image cannot read it.
    """
    try:
        image = np.asarray(getattr(skimage.data, name)(), dtype=np.float32)
    except Exception as error:  # a damaged file, or one that is missing and would be downloaded
        raise OSError(f"the photograph {name} of scikit-image could not be read: {error}") from error
    if image.ndim == 3:
        image = image.mean(-1)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    crop = torch.from_numpy(image[top : top + size, left : left + size])
    return ((crop - crop.mean()) / crop.std()).unsqueeze(0)

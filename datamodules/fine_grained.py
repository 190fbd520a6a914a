"""The base class of the fine-grained data sets, whose images have 448 x 448 pixels."""

from __future__ import annotations

from typing import Any

from torchvision.transforms import v2

from datamodules.official_data_set import OfficialDataSet
from datamodules.transforms import squeeze_to_square

SIZE = 448
"""Pixels; Song et al., ICCV 2021, appendix D."""


class FineGrained(OfficialDataSet):
    """Birds, dogs and cars: images resized to 448 x 448, whatever their shape (Song et al., ICCV 2021, appendix D).

    Training images are flipped at random: the paper does not mention it, its reference implementation does so. (That
    implementation resizes the shorter side to 448 for birds, and dogs to 512 x 512, and takes the centre; the paper
    resizes all to 448 x 448, of which a centre of 448 x 448 is the whole image.)
    """

    def __init__(self, root: str, batch_size: int = 10, num_workers: int = 4, **options: Any) -> None:
        super().__init__(root, batch_size, num_workers, **options)

    def sizing(self, training: bool) -> list[v2.Transform]:
        steps = squeeze_to_square(SIZE)
        if training:
            steps.append(v2.RandomHorizontalFlip())
        return steps

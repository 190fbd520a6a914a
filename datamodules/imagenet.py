"""ImageNet (ILSVRC 2012)."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

from datamodules.image_reading import reason
from datamodules.official_data_set import OfficialDataSet
from datamodules.transforms import squeeze_to_square

SIZES = {"resized": 256, "cropped": 224}
"""Pixels; Song et al., ICCV 2021, appendix D, and ECCV 2022, appendix B.2."""


class ImageNet(OfficialDataSet):
    """ImageNet (ILSVRC 2012): 1,000 classes, 1,281,167 images for training, 50,000 for evaluation.

    `root` holds ``train/<wnid>/*.JPEG`` and ``val/<wnid>/*.JPEG``. Labels follow the order of the folders' names, as
    in torchvision. Class names come from ``meta.bin`` if torchvision left one, else they are the folders' names.
    The labels of the official test set are not public: the validation images serve for validation and test.

    Images are resized to 256 x 256, whatever their shape; training takes a random square of 224 x 224, flipped at
    random, evaluation the centre (Song et al., ICCV 2021, appendix D).
    """

    source = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php (registration)"
    layout = "train/<wnid>/, val/<wnid>/"
    sizes = {"train": 1281167, "val": 50000}  # noqa: RUF012 - a ClassVar of the base
    num_classes = 1000

    def __init__(self, root: str, batch_size: int = 256, num_workers: int = 8, **options: Any) -> None:
        super().__init__(root, batch_size, num_workers, **options)

    def sizing(self, training: bool) -> list[v2.Transform]:
        resize = squeeze_to_square(SIZES["resized"])
        if training:
            return [*resize, v2.RandomCrop(SIZES["cropped"]), v2.RandomHorizontalFlip()]
        return [*resize, v2.CenterCrop(SIZES["cropped"])]

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """One name a label: the synonyms in ``meta.bin``, or the folder's name."""
        folders, path = super().class_names, self.root / "meta.bin"
        if not path.is_file():
            return folders
        try:
            synonyms, _ = torch.load(path, weights_only=True)
            return [", ".join(synonyms.get(wnid, (wnid,))) for wnid in folders]
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise ValueError(f"ImageNet: {path} cannot be read: {reason(error)[:80]}; it may be deleted") from error

    def without_folders(self, folder: Path, others: int) -> FileNotFoundError:
        if folder.name != "val":
            return super().without_folders(folder, others)
        return self.missing(
            f"{folder} holds {others} files and no class folders: sort them by running, inside it, "
            "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh"
        )

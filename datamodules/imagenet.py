"""ImageNet (ILSVRC 2012)."""

from __future__ import annotations

import io
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

from torchvision.transforms import v2

from datamodules.image_reading import reason
from datamodules.official_data_set import OfficialDataSet
from datamodules.plain_pickle import UnsafePickleError, read_bounded, read_plain_pickle
from datamodules.transforms import squeeze_to_square

SIZES = {"resized": 256, "cropped": 224}
"""Pixels; Song et al., ICCV 2021, appendix D, and ECCV 2022, appendix B.2."""

LARGEST_META = 2**24
"""Bytes of ``meta.bin``; torchvision's has about 100,000."""


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
        """One name per label: the synonyms in ``meta.bin``, or the folder's name."""
        folders, path = super().class_names, self.root / "meta.bin"
        if not path.is_file():
            return folders
        try:
            synonyms = _read_synonyms(path)
        except Exception as error:  # a damaged file makes the zip module raise nearly anything
            raise ValueError(f"ImageNet: {path} cannot be read: {reason(error)}; it may be deleted") from error
        return [", ".join(synonyms.get(wnid, (wnid,))) for wnid in folders]

    def without_folders(self, folder: Path, others: int) -> FileNotFoundError:
        if folder.name != "val":
            return super().without_folders(folder, others)
        return self.missing(
            f"{folder} holds {others} files and no class folders: sort them by running, inside it, "
            "https://raw.githubusercontent.com/soumith/imagenetloader.torch/master/valprep.sh"
        )


def _read_synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """The synonyms of each class in ``meta.bin``: a pair of a dictionary and a list, as torch saves it."""
    content = read_bounded(path, LARGEST_META)
    if zipfile.is_zipfile(io.BytesIO(content)):
        stored, _ = read_plain_pickle(_pickle_in_zip(content))
    else:  # before torch 1.6: pickles of a mark, a version and the machine precede it
        stored, _ = read_plain_pickle(content, skip=3)
    synonyms: dict[str, tuple[str, ...]] = {}
    for wnid, names in stored.items():
        if not all(isinstance(name, str) for name in (wnid, *names)):
            raise UnsafePickleError("it does not hold names of classes")
        synonyms[wnid] = tuple(names)
    return synonyms


def _pickle_in_zip(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.endswith("/data.pkl"):
                with archive.open(name) as file:
                    unpacked = file.read(LARGEST_META + 1)
                if len(unpacked) > LARGEST_META:
                    raise UnsafePickleError("it unpacks to more than any such file")
                return unpacked
    raise UnsafePickleError("it is not a file of torch")

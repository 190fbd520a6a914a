"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision.datasets
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from datamodules.image_files import Split
from datamodules.image_reading import reason
from datamodules.official_data_set import OfficialDataSet
from datamodules.transforms import squeeze_to_square

SIZE, PADDING = 32, 4
"""Pixels. The papers give no augmentation for CIFAR; this is the usual one, and their reference implementation's."""


class ImagesInMemory(Dataset[tuple[Tensor, int]]):
    """8-bit images ``(B, 3, H, W)`` in memory with labels."""

    def __init__(self, images: Tensor, labels: list[int], transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class CIFAR10(OfficialDataSet):
    """CIFAR-10: 10 classes, 50,000 images of 32 x 32 for training, 10,000 for evaluation.

    `root` holds ``cifar-10-batches-py/`` as it comes, or class folders ``train/<class>/`` and ``test/<class>/`` (or
    ``val/<class>/``), labelled in the order of their names. There is no validation split: the official test images
    serve for validation and test.

    Training images are padded by 4 black pixels, cropped to 32 x 32 at random and flipped at random. Image files of
    other sizes are resized to 32 x 32.

    Args:
        download: fetch the data (about 170 MB) into root if they are not there.
        check_counts: stop unless the numbers of classes and images and the files' checksums are the official ones;
            false: use an incomplete or changed copy as it is (its pickles are then run unverified).
    """

    source = "https://www.cs.toronto.edu/~kriz/cifar.html, or data.download true"
    layout = "cifar-10-batches-py/"
    sizes: ClassVar[dict[Split, int]] = {"train": 50000, "val": 10000}
    num_classes = 10
    torchvision_class: ClassVar[type[torchvision.datasets.CIFAR10]] = torchvision.datasets.CIFAR10
    # of all pixels of the training images, on a scale of 0 to 1
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        num_workers: int = 2,
        download: bool = False,
        check_counts: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(root, batch_size, num_workers, check_counts, **options)
        self.download = download

    def sizing(self, training: bool) -> list[v2.Transform]:
        resize = squeeze_to_square(SIZE)
        if training:
            return [*resize, v2.RandomCrop(SIZE, padding=PADDING), v2.RandomHorizontalFlip()]
        return resize

    def prepare_data(self) -> None:
        if not self.download or (self.root / "train").is_dir():
            return
        try:
            self.torchvision_class(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise self.missing(f"the download into {self.root} failed: {reason(error)}") from error

    @property
    def batches(self) -> Path:
        """The folder of the official files."""
        return self.root / self.torchvision_class.base_folder

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        if not self.batches.is_dir():
            if self.download and not (self.root / "train").is_dir():
                raise self.missing(
                    "the data are downloaded only after the model is built: give it their number of classes, "
                    f"--model.num_classes {self.num_classes}"
                )
            return super().class_names
        kind = self.torchvision_class
        names_file = kind.meta["filename"]
        official = [*kind.train_list, *kind.test_list, [names_file, kind.meta["md5"]]]
        if not self.check_counts:
            # A changed copy is used as it is; only the names of the classes cannot be done without.
            official = [[names_file, None]]
        for name, checksum in official:
            if not check_integrity(str(self.batches / name), checksum):
                wrong = "is damaged (checksum)" if (self.batches / name).is_file() else "is missing"
                raise self.missing(f"{name} {wrong} in {self.batches}", may_be_partial=name != names_file)
        names: list[str] = self._unpickle(self.batches / names_file)[kind.meta["key"]]
        return names

    @property
    def split_sizes(self) -> dict[Split, int]:
        """Number of images of each split, found without loading any if the official files are verified."""
        if not self.batches.is_dir():
            return super().split_sizes
        _ = self.class_names
        if self.check_counts:
            return dict(self.sizes)
        return {
            "train": len(self._read("train", self.val_transform)),
            "val": len(self._read("val", self.val_transform)),
        }

    def dataset(self, split: Split, transform: Callable[[Any], Tensor]) -> Dataset[Any]:
        if self.batches.is_dir():
            return self._read(split, transform)
        return super().dataset(split, transform)

    def training_list(self) -> bytes:
        if isinstance(self.train_set, ImagesInMemory):
            return torch.tensor(self.train_set.labels).numpy().tobytes()
        return super().training_list()

    def _read(self, split: Split, transform: Callable[[Tensor], Tensor]) -> ImagesInMemory:
        """Read the official files by torchvision; `class_names` has verified them if that is asked for."""
        kind = self.torchvision_class
        # torchvision would verify all files once more, and accepts no incomplete copy: its lists are cut to the files
        # that are there.
        present = {"train_list": self._present_files(kind.train_list), "test_list": self._present_files(kind.test_list)}
        if split == "train" and not present["train_list"]:
            raise self.missing(f"{kind.train_list[0][0]} is missing in {self.batches}")
        if split != "train" and not present["test_list"]:
            raise self.missing(f"{kind.test_list[0][0]} is missing in {self.batches}")
        unverified = type(kind.__name__, (kind,), {**present, "meta": {**kind.meta, "md5": None}})
        try:
            data = unverified(self.root, train=split == "train")
        except Exception as error:  # a damaged pickle raises nearly anything
            raise self.damaged(f"{self.batches} cannot be read: {reason(error)}") from error
        return ImagesInMemory(torch.from_numpy(data.data).permute(0, 3, 1, 2), data.targets, transform)

    def _present_files(self, listed: list[list[str]]) -> list[list[str | None]]:
        """The files that exist, with ``None`` for their checksums: they are not verified."""
        return [[name, None] for name, _ in listed if (self.batches / name).is_file()]

    def _unpickle(self, path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                content: dict[str, Any] = pickle.load(file, encoding="latin1")
                return content
        except Exception as error:  # a damaged pickle raises nearly anything
            raise self.damaged(f"{path} cannot be read: {reason(error)}") from error


class CIFAR100(CIFAR10):
    """CIFAR-100: 100 classes, 50,000 images of 32 x 32 for training, 10,000 for evaluation.

    `root` holds ``cifar-100-python/`` as it comes; the rest is as for CIFAR-10. The labels are the 100 fine ones.
    """

    layout = "cifar-100-python/"
    num_classes = 100
    torchvision_class = torchvision.datasets.CIFAR100
    # of all pixels of the training images, on a scale of 0 to 1
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

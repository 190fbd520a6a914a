"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torchvision.datasets
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.utils import check_integrity
from torchvision.transforms import v2

from datamodules.base import reason
from datamodules.image_files import ImageFilesModule, Lists, Split, pixels

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


class CIFAR10(ImageFilesModule):
    """CIFAR-10: 10 classes, 50,000 images of 32 x 32 for training, 10,000 for evaluation.

    `root` holds ``cifar-10-batches-py/`` as it comes, or class folders ``train/<class>/`` and ``test/<class>/`` (or
    ``val/<class>/``), labelled in the order of their names. There is no validation split: the official test images
    serve for validation and test.

    Training images are padded by 4 black pixels, cropped to 32 x 32 at random and flipped at random.

    Args:
        root: folder of the data set.
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        download: fetch the data (about 170 MB) into root if they are not there.
        check_counts: stop unless the numbers of classes and images and the files' checksums are the official ones;
            false: use an incomplete or changed copy as it is (its pickles are then run unverified).
        on_unreadable: at an image file that cannot be decoded, error stops the run and names it; skip names it, leaves
            it out of its batch, and tells the number of such images at the end.
        predict_folder: folder of images for predict, searched recursively; each is resized to 32 x 32; null: none.
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
        on_unreadable: Literal["error", "skip"] = "error",
        predict_folder: str | None = None,
    ) -> None:
        super().__init__(root, batch_size, num_workers, check_counts, on_unreadable, predict_folder)
        self.download = download
        resize, last = [v2.PILToTensor(), v2.Resize((SIZE, SIZE))], pixels(self.mean, self.std)
        augment = [v2.RandomCrop(SIZE, padding=PADDING), v2.RandomHorizontalFlip()]
        self.train_transform = v2.Compose([*resize, *augment, *last])
        self.val_transform = v2.Compose([*resize, *last])

    def prepare_data(self) -> None:
        if not self.download or (self.root / "train").is_dir():
            return
        try:
            self.torchvision_class(self.root, download=True)
        except (OSError, RuntimeError) as error:
            raise self.missing(f"the download into {self.root} failed: {reason(error)}") from error

    def read_lists(self) -> Lists | None:
        return None

    @property
    def batches(self) -> Path:
        """The folder of the official files."""
        return self.root / self.torchvision_class.base_folder

    @cached_property
    def class_names(self) -> list[str]:
        if not self.batches.is_dir():
            return super().class_names
        kind = self.torchvision_class
        meta = [kind.meta["filename"], kind.meta["md5"]]
        for name, checksum in [*kind.train_list, *kind.test_list, meta] if self.check_counts else [meta]:
            if not check_integrity(str(self.batches / name), checksum if self.check_counts else None):
                wrong = "is damaged (checksum)" if (self.batches / name).is_file() else "is missing"
                raise self.missing(f"{name} {wrong} in {self.batches}", may_be_partial=name != meta[0])
        names: list[str] = _unpickle(self, self.batches / meta[0])[kind.meta["key"]]
        return names

    @property
    def split_sizes(self) -> dict[Split, int]:
        """Number of images of each split, found without loading any where the official files are verified."""
        if not self.batches.is_dir():
            return super().split_sizes
        _ = self.class_names
        if self.check_counts:
            return dict(self.sizes)
        return {split: len(self._read(split, self.val_transform)) for split in ("train", "val")}

    def dataset(self, split: Split, transform: Callable[[Any], Tensor]) -> Dataset[Any]:
        return self._read(split, transform) if self.batches.is_dir() else super().dataset(split, transform)

    def _read(self, split: Split, transform: Callable[[Tensor], Tensor]) -> ImagesInMemory:
        """Read the official files by torchvision; `class_names` has verified them where that is asked for."""
        kind = self.torchvision_class
        lists = {"train_list": kind.train_list, "test_list": kind.test_list}
        present = {key: [[n, None] for n, _ in files if (self.batches / n).is_file()] for key, files in lists.items()}
        key = "train_list" if split == "train" else "test_list"
        if not present[key]:
            raise self.missing(f"{lists[key][0][0]} is missing in {self.batches}")
        unverified = type(kind.__name__, (kind,), {**present, "meta": {**kind.meta, "md5": None}})
        try:
            data = unverified(self.root, train=split == "train")
        except Exception as error:  # a damaged pickle raises whatever it wants
            raise self.damaged(f"{self.batches} cannot be read: {reason(error)}") from error
        return ImagesInMemory(torch.from_numpy(data.data).permute(0, 3, 1, 2), data.targets, transform)


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


def _unpickle(data: CIFAR10, path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content: dict[str, Any] = pickle.load(file, encoding="latin1")
            return content
    except Exception as error:  # a damaged pickle raises whatever it wants
        raise data.damaged(f"{path} cannot be read: {reason(error)}") from error

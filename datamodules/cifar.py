"""CIFAR-10 and CIFAR-100, in the files of their authors. These are pickles, of which only plain data is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision.datasets
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.utils import check_integrity, download_and_extract_archive
from torchvision.transforms import v2

from datamodules.image_files import Split
from datamodules.image_reading import reason
from datamodules.official_data_set import OfficialDataSet
from datamodules.official_lists import shown
from datamodules.plain_pickle import PickledArray, UnsafePickleError, read_bounded, read_plain_pickle
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
            false: use an incomplete or changed copy as it is. Nothing in the files is executed either way.
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
        if not self.download or (self.root / "train").is_dir() or self._is_complete():
            return
        kind = self.torchvision_class
        try:
            # Its own class would also unpickle what it has downloaded.
            download_and_extract_archive(kind.url, str(self.root), filename=kind.filename, md5=kind.tgz_md5)
        except (OSError, RuntimeError) as error:
            raise self.missing(f"the download into {self.root} failed: {reason(error)}") from error

    def _is_complete(self) -> bool:
        kind = self.torchvision_class
        return all(check_integrity(str(self.batches / name), md5) for name, md5 in [*kind.train_list, *kind.test_list])

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
            # A changed copy is used as it is, but the names of the classes are always needed.
            official = [[names_file, None]]
        for name, checksum in official:
            if not check_integrity(str(self.batches / name), checksum):
                wrong = "is damaged (checksum)" if (self.batches / name).is_file() else "is missing"
                raise self.missing(f"{name} {wrong} in {self.batches}", may_be_partial=name != names_file)
        return self._names(self.batches / names_file)

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
        """Read the official files; `class_names` has compared their checksums if that is asked for."""
        listed = self.torchvision_class.train_list if split == "train" else self.torchvision_class.test_list
        # An incomplete copy may lack some of them.
        present = [self.batches / name for name, _ in listed if (self.batches / name).is_file()]
        if not present:
            raise self.missing(f"{listed[0][0]} is missing in {self.batches}")
        images: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        for path in present:
            batch = self._unpickle(path)
            try:
                images.append(_images_of(batch))
                labels.extend(_labels_of(batch, len(images[-1]), len(self.class_names)))
            except UnsafePickleError as error:
                raise self.damaged(f"{path} cannot be read: {error}") from error
        return ImagesInMemory(torch.from_numpy(np.concatenate(images)), labels, transform)

    def _unpickle(self, path: Path) -> dict[Any, Any]:
        try:
            content = read_plain_pickle(read_bounded(path))
            if not isinstance(content, dict):
                raise UnsafePickleError("it does not hold a dictionary")
            return content
        except (OSError, UnsafePickleError) as error:
            raise self.damaged(f"{path} cannot be read: {reason(error)}") from error

    def _names(self, path: Path) -> list[str]:
        names = self._unpickle(path).get(self.torchvision_class.meta["key"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.damaged(f"{path} cannot be read: it does not hold the names of the classes")
        return names


def _images_of(batch: dict[Any, Any]) -> NDArray[np.uint8]:
    """The images of an official file, ``(B, 3, 32, 32)``."""
    array = batch.get("data")
    if not isinstance(array, PickledArray):
        raise UnsafePickleError("it does not hold images")
    return array.bytes_of_images(3 * SIZE * SIZE).reshape(-1, 3, SIZE, SIZE)


def _labels_of(batch: dict[Any, Any], images: int, classes: int) -> list[int]:
    """The labels of an official file; of CIFAR-100 the fine ones."""
    labels = batch.get("labels", batch.get("fine_labels"))
    if not isinstance(labels, list) or len(labels) != images:
        raise UnsafePickleError(f"it does not hold {images} labels, as many as images")
    for label in labels:
        if type(label) is not int or not 0 <= label < classes:
            raise UnsafePickleError(f"it has the label {shown(label)}, expected 0 to {classes - 1}")
    return labels


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

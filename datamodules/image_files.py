"""Data sets that lie on disk as image files: what to read, whether it is complete, and images that cannot be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from datamodules.base import UNREADABLE, ImageDataModule, read_image, reason

Split = Literal["train", "val"]
Files = list[tuple[str, int]]
"""Pairs of an image file, relative to the root, and its label."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of red, green and blue over ImageNet's training images, on a scale of 0 to 1; what torchvision's weights expect."""

EVALUATION_FOLDERS = ("val", "test")
"""Where class folders keep the images of the official evaluation split."""


class UnreadableImageError(ValueError):
    """An image that cannot be decoded. Of the traceback that a loader process hands on, it keeps the last line."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rsplit(f"{type(self).__name__}: ", 1)[-1])


class ImageFiles(Dataset[tuple[Tensor, int] | None]):
    """Image files with labels.

    Args:
        root: folder that the names of the files are relative to.
        files: pairs of a file and its label.
        transform: from a Pillow image to a tensor.
        on_unreadable: ``error`` raises at an image that cannot be read; ``skip`` gives ``None`` in its place.

    Attributes:
        unreadable: which files could not be read so far: one flag a file, in memory that loader processes share.
    """

    def __init__(
        self,
        root: Path,
        files: Files,
        transform: Callable[[Image.Image], Tensor],
        on_unreadable: Literal["error", "skip"] = "error",
    ) -> None:
        self.root, self.transform, self.on_unreadable = root, transform, on_unreadable
        # one array instead of a million strings, whose reference counts would unshare the memory of forked processes
        self.files: NDArray[np.bytes_] = np.array([os.fsencode(file) for file, _ in files])
        self.labels = torch.tensor([label for _, label in files])
        self.unreadable = torch.zeros(len(files), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / os.fsdecode(self.files[index])

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        path = self.path(index)
        try:
            image = read_image(path).convert("RGB")
        except UNREADABLE as error:
            if self.on_unreadable != "skip":
                raise UnreadableImageError(
                    f"unreadable image {path}: {reason(error)} (data.on_unreadable skip goes on without it)"
                ) from error
            if not self.unreadable[index]:
                print(f"unreadable, skipped: {path}: {reason(error)}", file=sys.stderr, flush=True)
            self.unreadable[index] = True
            return None
        return self.transform(image), int(self.labels[index])


def collate_readable(items: list[tuple[Tensor, int] | None]) -> Any:
    """A batch of what could be read: images ``(B, 3, H, W)`` and labels ``(B,)``."""
    readable = [item for item in items if item is not None]
    if not readable:
        raise UnreadableImageError(f"none of the {len(items)} images of a batch can be read: see the lines above")
    return default_collate(readable)


@dataclass
class Lists:
    """What the official lists of a data set say.

    Attributes:
        class_names: one name a label.
        files: image files and labels of each split.
    """

    class_names: list[str]
    files: dict[Split, Files]


class ImageFilesModule(ImageDataModule):
    """Base of the data sets that lie on disk as image files, by official lists or in plain class folders.

    A subclass sets `source` (where the data can be obtained), `layout` (what its own layout is recognised by), `sizes`,
    `num_classes` and the two transforms, and reads its official lists in `read_lists`. There is one
    official evaluation split: validation and test are the same images.

    Args:
        root: folder of the data set.
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        check_counts: stop unless the numbers of classes and images are the official ones; false: use an incomplete
            or changed copy as it is, without the listed files that are missing.
        on_unreadable: at an image that cannot be decoded, error stops the run and names it; skip names it, leaves it
            out of its batch, and tells the number of such images at the end.
        predict_folder: folder of images for predict, searched recursively; null: none.
    """

    source: ClassVar[str]
    layout: ClassVar[str]
    sizes: ClassVar[dict[Split, int]]
    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    train_transform: Callable[[Image.Image], Tensor]
    val_transform: Callable[[Image.Image], Tensor]

    def __init__(
        self,
        root: str,
        batch_size: int,
        num_workers: int = 4,
        check_counts: bool = True,
        on_unreadable: Literal["error", "skip"] = "error",
        predict_folder: str | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, predict_folder)
        self.root, self.check_counts, self.on_unreadable = Path(root).expanduser(), check_counts, on_unreadable

    def read_lists(self) -> Lists | None:
        """The official lists of the data set, or ``None`` where the root holds none of them."""
        raise NotImplementedError

    @cached_property
    def lists(self) -> Lists | None:
        """The official lists, read once."""
        if not self.root.is_dir():
            raise self.missing(f"data.root {self.root} is no folder")
        return self.read_lists()

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """One name a label, read without any image."""
        names = self.lists.class_names if self.lists else self.class_folders()
        if self.check_counts and len(names) != self.num_classes:
            raise self.missing(
                f"{len(names)} classes instead of {self.num_classes} in {self.root}", may_be_partial=True
            )
        return names

    @property
    def split_sizes(self) -> dict[Split, int]:
        """Number of images of each split, found without loading any."""
        return {split: len(self.files(split)) for split in ("train", "val")}

    def class_folders(self) -> list[str]:
        """Sorted names of the class folders: of ``train/``, or where there is none of the evaluation folder."""
        for name in ("train", *EVALUATION_FOLDERS):
            if (self.root / name).is_dir():
                return self.folders_in(self.root / name)
        raise self.missing(f"{self.root} has neither {self.layout} nor class folders train/<class>/, val/<class>/")

    def folders_in(self, folder: Path) -> list[str]:
        """Sorted names of the folders in a folder.

        Raises:
            FileNotFoundError: if there are none.
        """
        names, others = [], 0
        for entry in os.scandir(folder):
            if entry.is_dir() and not entry.name.startswith("."):
                names.append(entry.name)
            else:
                others += 1
        if not names:
            raise self.without_folders(folder, others)
        return sorted(names)

    def without_folders(self, folder: Path, others: int) -> FileNotFoundError:
        """The error for a folder that should hold class folders and does not, but `others` files."""
        return self.missing(f"{folder} holds {others} files and no class folders")

    def files(self, split: Split) -> Files:
        """Files and labels of a split, checked.

        Raises:
            FileNotFoundError: if files are missing, or their number is not the official one.
        """
        _ = self.class_names
        files = self.lists.files[split] if self.lists else self._files_in_folders(split)
        if self.lists:
            absent = [file for file, _ in files if not (self.root / file).is_file()]
            if absent and (self.check_counts or len(absent) == len(files)):
                raise self.missing(
                    f"{len(absent)} of {len(files)} listed {split} images are missing, first {self.root / absent[0]}",
                    may_be_partial=len(absent) < len(files),
                )
            if absent:
                rank_zero_info(f"{len(absent)} of {len(files)} listed {split} images are missing and left out")
                gone = set(absent)
                files = [(file, label) for file, label in files if file not in gone]
        if self.check_counts and len(files) != self.sizes[split]:
            raise self.missing(
                f"{len(files)} {split} images instead of {self.sizes[split]} in {self.root}", may_be_partial=True
            )
        if not files:
            raise self.missing(f"no {split} images in {self.root}")
        return files

    def _files_in_folders(self, split: Split) -> Files:
        wanted = ("train",) if split == "train" else EVALUATION_FOLDERS
        folder = next((self.root / name for name in wanted if (self.root / name).is_dir()), None)
        if folder is None:
            raise self.missing(f"{self.root} has no folder {' or '.join(f'{name}/' for name in wanted)}")
        labels = {name: label for label, name in enumerate(self.class_folders())}
        files = []
        for name in self.folders_in(folder):
            if name not in labels:
                raise self.missing(f"{folder / name} is a class that train/ does not have")
            images = sorted(
                entry.name
                for entry in os.scandir(folder / name)
                if entry.name.lower().endswith(IMG_EXTENSIONS) and not entry.name.startswith(".")
            )
            files += [(f"{folder.name}/{name}/{image}", labels[name]) for image in images]
        return files

    def setup(self, stage: str) -> None:
        splits: dict[str, tuple[Split, ...]] = {"fit": ("val", "train"), "predict": ()}  # the smaller first
        _ = self.class_names
        for split in splits.get(stage, ("val",)):
            transform = self.train_transform if split == "train" else self.val_transform
            dataset = self.dataset(split, transform)
            if split == "train":
                self.train_set = dataset
            else:
                self.val_set = self.test_set = dataset

    def dataset(self, split: Split, transform: Callable[[Any], Tensor]) -> Dataset[Any]:
        """The images of a split."""
        return ImageFiles(self.root, self.files(split), transform, self.on_unreadable)

    def evaluate_transform(self, image: Image.Image) -> Tensor:
        return self.val_transform(image.convert("RGB"))

    def teardown(self, stage: str) -> None:
        """Tell how many images this process had to skip."""
        datasets = {"training": getattr(self, "train_set", None), "evaluation": getattr(self, "val_set", None)}
        for split, dataset in datasets.items():
            count = int(dataset.unreadable.sum()) if isinstance(dataset, ImageFiles) else 0
            if count:
                print(f"unreadable {split} images skipped in this process: {count}", file=sys.stderr, flush=True)

    def _loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        if isinstance(dataset, ImageFiles):
            options["collate_fn"] = collate_readable
        return super()._loader(dataset, **options)

    def missing(self, what: str, may_be_partial: bool = False) -> FileNotFoundError:
        """The error for something that is not there: what and where, and where the data can be obtained."""
        partial = "; data.check_counts false uses it as it is" if may_be_partial else ""
        return FileNotFoundError(f"{type(self).__name__}: {what}{partial}; the data: {self.source}")

    def damaged(self, what: str) -> ValueError:
        """The error for a file that does not hold what it should."""
        return ValueError(f"{type(self).__name__}: {what}; the data: {self.source}")

    def find(self, file: str, *folders: Path) -> Path:
        """The first of some folders that holds a file.

        Raises:
            FileNotFoundError: if none does.
        """
        for folder in folders:
            if (folder / file).is_file():
                return folder / file
        raise self.missing(f"{file} is missing in {' and '.join(map(str, folders))}")

    def read_mat(self, path: Path, *fields: str) -> list[NDArray[Any]]:
        """Variables of a MATLAB file as flat arrays.

        Raises:
            ValueError: if it cannot be read, or lacks one of them.
        """
        try:
            content = scipy.io.loadmat(path, squeeze_me=True)
        except Exception as error:  # scipy raises whatever a damaged file provokes
            raise self.damaged(f"{path} cannot be read: {reason(error)}") from error
        if absent := [field for field in fields if field not in content]:
            raise self.damaged(f"{path} has no variable {absent[0]}")
        return [np.atleast_1d(content[field]) for field in fields]

    def labels_from_one(self, labels: Any, classes: int, path: Path) -> list[int]:
        """Labels counted from 1, as the official lists have them, to labels counted from 0.

        Raises:
            ValueError: if one is out of range.
        """
        counted = [int(label) - 1 for label in labels]
        if wrong := [label + 1 for label in counted if not 0 <= label < classes]:
            raise self.damaged(f"{path} has the label {wrong[0]}, expected 1 to {classes}")
        return counted


def pixels(mean: tuple[float, float, float], std: tuple[float, float, float]) -> list[v2.Transform]:
    """The last transforms: 8-bit values to normalised floating point numbers."""
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]

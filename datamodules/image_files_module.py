"""The base class of data sets of image files on disk, ours and a user's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from app.console.text import printable
from datamodules.base import ImageDataModule
from datamodules.image_files import Files, ImageFiles, OnUnreadable, Split, collate_readable
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, crop_to_square, to_network


class ImageFilesModule(ImageDataModule):
    """A data set of image files: a subclass names its classes, and lists the files of each split with their labels.

    That is enough for your own data set, given on the command line by its class path::

        class Pets(ImageFilesModule):
            class_names = ["cat", "dog"]

            def files(self, split):  # "train" or "val"
                return [(f"{split}/{number}.jpg", number % 2) for number in range(100)]

    A subclass may also define how images are sized (`sizing`), and have a separate split for `test` (`test_split`).

    Args:
        root: folder of the data set.
        batch_size: images per step over all processes together; each process takes its share.
        num_workers: loader processes per training process.
        augmentation: class path of a random transform of training images, such as
            torchvision.transforms.v2.RandAugment, or a function; it takes and returns an 8-bit tensor (3, H, W), after
            crop and flip; torchvision.transforms.v2.Compose takes several; null: none.
        on_unreadable: for an image that cannot be decoded: error stops the run and names the image; skip names it,
            leaves it out of its batch, and reports the number of such images at the end.
        predict_folder: folder of images for predict, searched recursively; null: none.
        apply_orientation: turn images upright if their camera has noted in which direction that is (EXIF), in training,
            evaluation and prediction; false: use them as they are stored, as the published results do.

    Attributes:
        test_split: the split that `test` uses; by default the validation images.
        mean: of each channel of the training images, on a scale of 0 to 1.
        std: standard deviation of each channel.
    """

    test_split: Split = "val"
    collate = staticmethod(collate_readable)
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        num_workers: int = 4,
        augmentation: Callable[[Any], Any] | None = None,
        on_unreadable: OnUnreadable = "error",
        predict_folder: str | None = None,
        apply_orientation: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, predict_folder)
        self.apply_orientation = apply_orientation
        self.root = Path(root).expanduser()
        self.augmentation, self.on_unreadable = augmentation, on_unreadable

    def files(self, split: Split) -> Files:
        """Files of a split, relative to the root or absolute, each with its label, the index of its class name."""
        raise NotImplementedError

    def sizing(self, training: bool) -> list[v2.Transform]:
        """Transforms of an 8-bit image ``(3, H, W)`` to the size that the network sees; in training, flips too."""
        if training:
            return [*crop_to_square(224, random_place=True), v2.RandomHorizontalFlip()]
        return crop_to_square(224, random_place=False)

    @cached_property
    def train_transform(self) -> Callable[[Any], Tensor]:
        """From an image to what the network sees in training."""
        return to_network(self.sizing(training=True), self.mean, self.std, self.augmentation)

    @cached_property
    def val_transform(self) -> Callable[[Any], Tensor]:
        """From an image to what the network sees in validation, test and prediction."""
        return to_network(self.sizing(training=False), self.mean, self.std)

    def evaluate_transform(self, image: Image.Image) -> Tensor:
        return self.val_transform(image.convert("RGB"))

    @property
    def split_sizes(self) -> dict[Split, int]:
        """Number of images of each split, found without loading any."""
        return {"train": len(self.files("train")), "val": len(self.files("val"))}

    def setup(self, stage: str) -> None:
        _ = self.class_names  # an error in the list of classes is reported before any image is listed
        if stage == "predict":
            return
        if stage == "test":
            self.test_set = self.dataset(self.test_split, self.val_transform)
            return
        self.val_set = self.dataset("val", self.val_transform)
        if stage == "fit":
            self.train_set = self.dataset("train", self.train_transform)

    def dataset(self, split: Split, transform: Callable[[Any], Tensor]) -> Dataset[Any]:
        """The images of a split.

        Raises:
            ValueError: if there are none, or a label is not the index of a class.
        """
        files, classes = self.files(split), len(self.class_names)
        if not files:
            raise ValueError(f"{type(self).__name__}: there are no {split} images")
        for file, label in files:
            if not 0 <= label < classes:
                raise ValueError(
                    f"{type(self).__name__}: {file} has the label {label}, but there are {classes} classes"
                )
        return ImageFiles(
            self.root, files, transform, self.on_unreadable, self.apply_orientation, shared=self.num_workers > 0
        )

    def teardown(self, stage: str) -> None:
        """Report how many images this process had to skip."""
        if stage == "fit":
            self._report_skipped("training", self.train_set)
        if stage in ("fit", "validate"):
            self._report_skipped("evaluation", self.val_set)
        if stage == "test":
            self._report_skipped("evaluation", self.test_set)

    def training_list(self) -> bytes:
        if not isinstance(self.train_set, ImageFiles):
            return super().training_list()
        return self.train_set.files.tobytes() + self.train_set.labels.numpy().tobytes()

    def _report_skipped(self, kind: str, dataset: Dataset[Any]) -> None:
        if not isinstance(dataset, ImageFiles) or not dataset.unreadable.any():
            return
        count = int(dataset.unreadable.sum())
        print(f"unreadable {kind} images skipped in this process: {count}", file=sys.stderr, flush=True)
        for label in dataset.labels_without_images():
            name = printable(self.class_names[label])
            print(f"none of the {kind} images of the class {name} can be read", file=sys.stderr, flush=True)

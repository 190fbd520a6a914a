"""Your own photographs, in class folders."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_info
from torchvision.transforms import v2

from datamodules.class_folders import EVALUATION_FOLDERS, UnknownClassError, read_class_folders, split_by_class
from datamodules.folders import read_folder
from datamodules.image_files import Files, Split
from datamodules.image_files_module import ImageFilesModule
from datamodules.transforms import crop_to_square, squeeze_to_square


class ImageFolder(ImageFilesModule):
    """Your own photographs: a folder for each class, labelled in the order of the folder names.

    `root` holds ``train/<class>/`` and ``val/<class>/`` or ``test/<class>/``. If there are all three, ``test/`` serves
    for `test` only, otherwise the same images serve for validation and test. Or `root` holds the class folders
    themselves, ``<class>/``: then a part of each class serves for validation and test, the same part each time.

    Links are followed. Hidden files, and files that are not images, are left out.

    Args:
        image_size: side in pixels of the square that the network sees.
        resize: crop: the shorter side is resized to 8/7 of image_size, and a square is cut out, at a random place in
            training, in the centre in evaluation; squeeze: the whole image is resized to the square, whatever its
            shape.
        horizontal_flip: flip training images at random, left to right; false where that changes the class, as for text.
        val_fraction: fraction of the images of each class for validation, if root holds the class folders themselves;
            of two images or more, at least one is for training and one for validation.
        split_seed: seed of the split; another number selects other images for validation.
        apply_orientation: rotate photographs as their camera recorded it (EXIF), as image viewers do, in training,
            evaluation and prediction; false: use them as they are stored.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 32,
        num_workers: int = 4,
        image_size: int = 224,
        resize: Literal["crop", "squeeze"] = "crop",
        horizontal_flip: bool = True,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        apply_orientation: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(root, batch_size, num_workers, apply_orientation=apply_orientation, **options)
        if image_size < 1:
            raise ValueError(f"data.image_size must be at least 1, got {image_size}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        self.image_size, self.resize, self.horizontal_flip = image_size, resize, horizontal_flip
        self.val_fraction, self.split_seed = val_fraction, split_seed

    def sizing(self, training: bool) -> list[v2.Transform]:
        if self.resize == "squeeze":
            steps = squeeze_to_square(self.image_size)
        else:
            steps = crop_to_square(self.image_size, random_place=training)
        if training and self.horizontal_flip:
            steps.append(v2.RandomHorizontalFlip())
        return steps

    # This reads no class folder: the model may ask for the number of classes before the data are set up.
    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """The names of the class folders, sorted; their content is not read."""
        folder = self._folders["train"]
        content = read_folder(folder)
        if not content.folders:
            raise self._error(f"{folder} holds {len(content.images)} images and no class folders")
        if len(content.folders) == 1:
            raise self._error(f"{folder} holds only one class folder, {content.folders[0]}/")
        return content.folders

    @property
    def test_split(self) -> Split:  # type: ignore[override]
        """The split of `test`: ``test/`` if there is also ``val/``, else the validation images."""
        if "test" in self._folders:
            return "test"
        return "val"

    @cached_property
    def _folders(self) -> dict[Split, Path]:
        """The folder that holds the class folders of each split; if it is one for all, it is that of ``train``."""
        if not self.root.is_dir():
            raise self._error(f"data.root {self.root} is not a folder")
        present = read_folder(self.root).folders
        evaluation = [name for name in EVALUATION_FOLDERS if name in present]
        # A folder train/ alone is no sign of that layout: it may be a class, among other vehicles.
        if "train" not in present or not evaluation:
            return {"train": self.root}
        folders: dict[Split, Path] = {"train": self.root / "train", "val": self.root / evaluation[0]}
        if len(evaluation) == 2:
            folders["test"] = self.root / "test"
        return folders

    def files(self, split: Split) -> Files:
        """Files and labels of a split.

        Raises:
            FileNotFoundError: if a class has no training images, or a split has none at all.
        """
        if "val" in self._folders:
            return self._read(split)
        return self._divided["train" if split == "train" else "val"]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            training, validation = len(self.train_set), len(self.val_set)  # type: ignore[arg-type]
            rank_zero_info(
                f"{training} training and {validation} validation images of {len(self.class_names)} classes in "
                f"{self.root}"
            )

    @cached_property
    def _divided(self) -> dict[Split, Files]:
        """The two parts of one folder of class folders."""
        training, validation = split_by_class(self._read("train"), self.val_fraction, self.split_seed)
        if not validation:
            raise self._error("no class has two images, one for training and one for validation")
        return {"train": training, "val": validation}

    def _read(self, split: Split) -> Files:
        folder = self._folders[split]
        try:
            found = read_class_folders(self.root, folder, self.class_names)
        except UnknownClassError as error:
            raise self._error(str(error)) from error
        if found.empty and (split == "train" or not found.files):
            raise self._error(found.without_images())
        found.report("training" if split == "train" else "validation")
        return found.files

    def _error(self, what: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{type(self).__name__}: {what}; {self.root} should hold train/<class>/ and val/<class>/, or <class>/"
        )

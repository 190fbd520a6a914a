"""The base class of the published data sets: official lists or class folders, and a check that all files are there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pytorch_lightning.utilities import rank_zero_info

from datamodules.class_folders import EVALUATION_FOLDERS, UnknownClassError, first_folder, read_class_folders
from datamodules.folders import read_folder
from datamodules.image_files import Files, OnUnreadable, Split
from datamodules.image_files_module import ImageFilesModule
from datamodules.official_lists import DamagedListError, Lists, check_each_file_once


class OfficialDataSet(ImageFilesModule):
    """The base class of the published data sets, which come with official lists or are laid out in class folders.

    A subclass sets `source`, `layout`, `sizes`, `num_classes` and `sizing`, and reads its official lists, if there are
    any, in `read_lists`. There is one official evaluation split: validation and test are the same images.

    Args:
        check_counts: stop unless the numbers of classes and images are the official ones; false: use an incomplete
            or changed copy as it is, without the listed files that are missing.

    Attributes:
        source: where the data can be obtained.
        layout: files that the official layout is recognised by.
        sizes: official number of images of each split.
        num_classes: official number of classes.
    """

    source: ClassVar[str]
    layout: ClassVar[str]
    sizes: ClassVar[dict[Split, int]]
    num_classes: ClassVar[int]

    def __init__(
        self,
        root: str,
        batch_size: int,
        num_workers: int = 4,
        check_counts: bool = True,
        augmentation: Callable[[Any], Any] | None = None,
        on_unreadable: OnUnreadable = "error",
        predict_folder: str | None = None,
        apply_orientation: bool = False,
    ) -> None:
        super().__init__(root, batch_size, num_workers, augmentation, on_unreadable, predict_folder, apply_orientation)
        self.check_counts = check_counts

    def read_lists(self) -> Lists | None:
        """The official lists of the data set, or ``None`` where the root holds none of them."""
        return None

    @cached_property
    def lists(self) -> Lists | None:
        """The official lists, read once."""
        if not self.root.is_dir():
            raise self.missing(f"data.root {self.root} is not a folder")
        try:
            lists = self.read_lists()
            if lists is not None:
                check_each_file_once(lists, self.root)
        except DamagedListError as error:
            raise self.damaged(str(error)) from error
        return lists

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]
        """One name per label, read without any image."""
        names = self.lists.class_names if self.lists else self.class_folders()
        if self.check_counts and len(names) != self.num_classes:
            raise self.missing(
                f"{len(names)} classes instead of {self.num_classes} in {self.root}", may_be_partial=True
            )
        return names

    def class_folders(self) -> list[str]:
        """Sorted names of the class folders: of ``train/``, or where there is none of the evaluation folder."""
        folder = first_folder(self.root, ("train", *EVALUATION_FOLDERS))
        if folder is None:
            raise self.missing(f"{self.root} has neither {self.layout} nor class folders train/<class>/, val/<class>/")
        return self._folders_in(folder)

    def files(self, split: Split) -> Files:
        """Files and labels of a split, checked.

        Raises:
            FileNotFoundError: if files are missing, or their number is not the official one.
        """
        _ = self.class_names  # a wrong number of classes is reported before any image is listed
        files = self._present(split, self.lists.files[split]) if self.lists else self._files_in_folders(split)
        if self.check_counts and len(files) != self.sizes[split]:
            raise self.missing(
                f"{len(files)} {split} images instead of {self.sizes[split]} in {self.root}", may_be_partial=True
            )
        if not files:
            raise self.missing(f"no {split} images in {self.root}")
        return files

    def without_folders(self, folder: Path, others: int) -> FileNotFoundError:
        """The error for a folder that should hold class folders, but holds `others` files and no folders."""
        return self.missing(f"{folder} holds {others} files and no class folders")

    def missing(self, what: str, may_be_partial: bool = False) -> FileNotFoundError:
        """The error for something that is not there: what and where, and where the data can be obtained."""
        if may_be_partial:
            what += "; data.check_counts false uses it as it is"
        return FileNotFoundError(f"{type(self).__name__}: {what}; the data: {self.source}")

    def damaged(self, what: str) -> ValueError:
        """The error for a file that does not hold what it should."""
        return ValueError(f"{type(self).__name__}: {what}; the data: {self.source}")

    def find(self, file: str, *folders: Path) -> Path:
        """A file in the first of some folders that holds it.

        Raises:
            FileNotFoundError: if none does.
        """
        for folder in folders:
            if (folder / file).is_file():
                return folder / file
        raise self.missing(f"{file} is missing in {' and '.join(map(str, folders))}")

    def _present(self, split: Split, listed: Files) -> Files:
        """The listed files that exist; without `check_counts`, some may be missing."""
        present: Files = []
        absent: list[str] = []
        for file, label in listed:
            if (self.root / file).is_file():
                present.append((file, label))
            else:
                absent.append(file)
        if not absent:
            return present
        missing = f"{len(absent)} of {len(listed)} listed {split} images are missing"
        if self.check_counts or not present:
            raise self.missing(f"{missing}, first {self.root / absent[0]}", may_be_partial=bool(present))
        rank_zero_info(f"{missing} and left out")
        return present

    def _files_in_folders(self, split: Split) -> Files:
        # There is one official evaluation split, which some copies call val/ and others test/.
        wanted: tuple[str, ...] = EVALUATION_FOLDERS
        if split == "train":
            wanted = ("train",)
        folder = first_folder(self.root, wanted)
        if folder is None:
            raise self.missing(f"{self.root} has no folder {' or '.join(f'{name}/' for name in wanted)}")
        self._folders_in(folder)
        try:
            found = read_class_folders(self.root, folder, self.class_folders())
        except UnknownClassError as error:
            raise self.missing(str(error)) from error
        if found.empty and not found.files:
            raise self.missing(found.without_images())
        found.report("training" if split == "train" else "validation")
        return found.files

    def _folders_in(self, folder: Path) -> list[str]:
        content = read_folder(folder)
        if not content.folders:
            raise self.without_folders(folder, len(content.images) + len(content.others))
        return content.folders

"""Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datamodules.fine_grained import FineGrained
from datamodules.image_files import Files, Split
from datamodules.mat_files import read_mat
from datamodules.official_lists import DamagedListError, Lists, class_name, labels_from_one, listed_file, shown

MARKS = ("devkit", "cars_train", "cars_test", "cars_train_annos.mat", "cars_meta.mat")
"""Files and folders by which the layout with a development kit is recognised."""

DEVKIT: dict[Split, tuple[str, str]] = {
    "train": ("cars_train_annos.mat", "cars_train"),
    "val": ("cars_test_annos_withlabels.mat", "cars_test"),
}
"""The list and the folder of the images of each split."""


class Cars(FineGrained):
    """Stanford Cars: 196 models, 8,144 images for training, 8,041 for evaluation.

    `root` is the folder ``stanford_cars`` or the one that holds it, in one of the layouts in use:

    - ``cars_train/``, ``cars_test/``, and ``cars_train_annos.mat``, ``cars_test_annos_withlabels.mat``,
      ``cars_meta.mat``, each in ``devkit/`` or beside it (torchvision expects the second beside it);
    - ``car_ims/`` and ``cars_annos.mat``;
    - class folders ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``), labelled in the
      order of their names.

    There is no validation split: the official test images serve for validation and test.
    """

    source = "the original server is gone; copies: https://github.com/pytorch/vision/issues/7545"
    layout = "cars_train/ with devkit/, car_ims/ with cars_annos.mat"
    sizes = {"train": 8144, "val": 8041}  # noqa: RUF012 - a ClassVar of the base
    num_classes = 196

    def read_lists(self) -> Lists | None:
        home = self.root / "stanford_cars"
        if not home.is_dir():
            home = self.root
        if (home / "cars_annos.mat").is_file() or (home / "car_ims").is_dir():
            return self._read_one_list(home)
        if any((home / mark).exists() for mark in MARKS):
            return self._read_devkit(home)
        return None

    def _read_one_list(self, home: Path) -> Lists:
        path = self.find("cars_annos.mat", home)
        annotations, class_names = read_mat(path, "annotations", "class_names")
        _require(path, annotations.dtype.names, "relative_im_path", "class", "test")
        labels = labels_from_one(annotations["class"], len(class_names), path)
        files: dict[Split, Files] = {"train": [], "val": []}
        for image, test, label in zip(annotations["relative_im_path"], annotations["test"], labels, strict=True):
            files[_split(test, path)].append((listed_file(image, self._in_root(home), path), label))
        return Lists([class_name(name, path) for name in class_names], files)

    def _read_devkit(self, home: Path) -> Lists:
        folders = (home / "devkit", home)
        names_file = self.find("cars_meta.mat", *folders)
        (class_names,) = read_mat(names_file, "class_names")
        files: dict[Split, Files] = {}
        for split, (name, folder) in DEVKIT.items():
            path = self.find(name, *folders)
            (annotations,) = read_mat(path, "annotations")
            _require(path, annotations.dtype.names, "fname", "class")
            labels = labels_from_one(annotations["class"], len(class_names), path)
            place = self._in_root(home / folder)
            images = [listed_file(image, place, path) for image in annotations["fname"]]
            files[split] = list(zip(images, labels, strict=True))
        return Lists([class_name(name, names_file) for name in class_names], files)

    def _in_root(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _split(test: Any, path: Path) -> Split:
    if not isinstance(test, (int, np.number)) or test not in (0, 1):
        raise DamagedListError(f"{path} has {shown(test)} in its field test, expected 0 or 1")
    return "val" if test == 1 else "train"


def _require(path: Path, present: tuple[str, ...] | None, *fields: str) -> None:
    for field in fields:
        if field not in (present or ()):
            raise DamagedListError(f"the annotations of {path} have no field {field}")

"""Caltech-UCSD Birds-200-2011."""

from __future__ import annotations

from pathlib import Path

from datamodules.fine_grained import FineGrained
from datamodules.official_lists import DamagedListError, Lists, labels_from_one

LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
"""Files that come with the data set; each line of them is a number and a value."""


class Birds(FineGrained):
    """Caltech-UCSD Birds-200-2011: 200 species, 5,994 images for training, 5,794 for evaluation.

    `root` is the folder ``CUB_200_2011`` or the one that holds it, with ``images.txt``, ``image_class_labels.txt``,
    ``train_test_split.txt``, ``classes.txt`` and ``images/`` as they come; or a folder of class folders
    ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``), labelled in the order of their names. There is no
    validation split: the official test images serve for validation and test.
    """

    source = "https://www.vision.caltech.edu/datasets/cub_200_2011/ (CUB_200_2011.tgz)"
    layout = "CUB_200_2011/images.txt"
    sizes = {"train": 5994, "val": 5794}  # noqa: RUF012 - a ClassVar of the base
    num_classes = 200

    def read_lists(self) -> Lists | None:
        home = self.root / "CUB_200_2011"
        if not home.is_dir():
            home = self.root
        if not any((home / file).is_file() for file in LISTS):
            return None
        paths = [self.find(file, home) for file in LISTS]
        images, labels, in_training, classes = map(_read_values, paths)
        for path, column in ((paths[1], labels), (paths[2], in_training)):
            if column.keys() != images.keys():
                raise DamagedListError(f"{path} and {paths[0]} list different images")
        class_names = [classes[key] for key in sorted(classes, key=int)]
        counted = labels_from_one((labels[key] for key in images), len(classes), paths[1])
        folder = (home / "images").relative_to(self.root).as_posix()
        lists = Lists(class_names, {"train": [], "val": []})
        for (key, file), label in zip(images.items(), counted, strict=True):
            lists.files["train" if in_training[key] == "1" else "val"].append((f"{folder}/{file}", label))
        return lists


def _read_values(path: Path) -> dict[str, str]:
    """The values of a list by their numbers."""
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        parts = line.split(maxsplit=1)
        if not parts:
            continue
        if len(parts) != 2 or not parts[0].isdigit():
            raise DamagedListError(f"{path} has a line {' '.join(parts)!r}, expected a number and a value")
        values[parts[0]] = parts[1].strip()
    return values

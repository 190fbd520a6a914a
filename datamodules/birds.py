"""Caltech-UCSD Birds-200-2011."""

from __future__ import annotations

from pathlib import Path

from datamodules.fine_grained import FineGrained
from datamodules.image_files import Split
from datamodules.official_lists import (
    DamagedListError,
    Lists,
    Value,
    class_name,
    label_from_one,
    listed_file,
    read_numbered_lines,
    shown,
)

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
        images, labels, in_training, classes = (read_numbered_lines(self.find(file, home)) for file in LISTS)
        for file, column in zip(LISTS[1:3], (labels, in_training), strict=True):
            if column.keys() != images.keys():
                raise DamagedListError(f"{home / file} and {home / LISTS[0]} list different images")
        if sorted(classes) != list(range(1, len(classes) + 1)):
            raise DamagedListError(f"{home / LISTS[3]} does not number the classes from 1 to {len(classes)}")
        class_names = [class_name(classes[number].text, home / LISTS[3]) for number in sorted(classes)]
        folder = (home / "images").relative_to(self.root).as_posix()
        lists = Lists(class_names, {"train": [], "val": []})
        for number, image in images.items():
            where = f"{home / LISTS[1]}, line {labels[number].line},"
            label = label_from_one(labels[number].text, len(classes), where)
            file = listed_file(image.text, folder, home / LISTS[0])
            lists.files[_split(in_training[number], home / LISTS[2])].append((file, label))
        return lists


def _split(value: Value, path: Path) -> Split:
    if value.text not in ("0", "1"):
        raise DamagedListError(f"{path}, line {value.line}, has {shown(value.text)}, expected 0 or 1")
    return "train" if value.text == "1" else "val"

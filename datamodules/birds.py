"""Caltech-UCSD Birds-200-2011."""

from __future__ import annotations

from pathlib import Path

from datamodules.fine_grained import FineGrained
from datamodules.image_files import Lists


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
        lists = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
        home = self.root / "CUB_200_2011"
        if not home.is_dir():
            home = self.root
        if not any((home / file).is_file() for file in lists):
            return None
        paths = [self.find(file, home) for file in lists]
        images, labels, in_training, classes = (self._read(path) for path in paths)
        for path, column in ((paths[1], labels), (paths[2], in_training)):
            if column.keys() != images.keys():
                raise self.damaged(f"{path} and {paths[0]} list different images")
        class_names = [classes[key] for key in sorted(classes, key=int)]
        counted = self.labels_from_one((labels[key] for key in images), len(classes), paths[1])
        folder = (home / "images").relative_to(self.root).as_posix()
        lists_of = Lists(class_names, {"train": [], "val": []})
        for (key, file), label in zip(images.items(), counted, strict=True):
            lists_of.files["train" if in_training[key] == "1" else "val"].append((f"{folder}/{file}", label))
        return lists_of

    def _read(self, path: Path) -> dict[str, str]:
        """Lines of a number and a value."""
        lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if wrong := [line for line in lines if len(line) != 2 or not line[0].isdigit()]:
            raise self.damaged(f"{path} has a line {' '.join(wrong[0])!r}, expected a number and a value")
        return {key: value.strip() for key, value in lines}

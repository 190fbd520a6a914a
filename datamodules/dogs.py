"""Stanford Dogs."""

from __future__ import annotations

from pathlib import PurePosixPath

from datamodules.fine_grained import FineGrained
from datamodules.image_files import Files, Split
from datamodules.mat_files import read_mat
from datamodules.official_lists import DamagedListError, Lists, labels_from_one, listed_file, shown

LISTS: dict[Split, str] = {"train": "train_list.mat", "val": "test_list.mat"}


class Dogs(FineGrained):
    """Stanford Dogs: 120 breeds, 12,000 images for training, 8,580 for evaluation.

    Its images are ImageNet's. A network pre-trained on ImageNet has seen most of this test set with its labels:
    accuracies after such pre-training, including the published ones, are too high.

    `root` holds ``Images/<wnid>-<breed>/*.jpg`` with ``train_list.mat`` and ``test_list.mat``, beside it or in
    ``lists/``, as they come; or class folders ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``), labelled
    in the order of their names. There is no validation split: the official test images serve for validation and test.
    """

    source = "http://vision.stanford.edu/aditya86/ImageNetDogs/ (images.tar and lists.tar)"
    layout = "Images/ with train_list.mat and test_list.mat"
    sizes = {"train": 12000, "val": 8580}  # noqa: RUF012 - a ClassVar of the base
    num_classes = 120

    def read_lists(self) -> Lists | None:
        folders = (self.root, self.root / "lists")
        marks = [self.root / "Images"]
        for folder in folders:
            marks += [folder / name for name in LISTS.values()]
        if not any(mark.exists() for mark in marks):
            return None
        files: dict[Split, Files] = {}
        breeds: dict[int, str] = {}
        for split, name in LISTS.items():
            path = self.find(name, *folders)
            listed, labels = read_mat(path, "file_list", "labels")
            counted = labels_from_one(labels, self.num_classes, path)
            if len(listed) != len(counted):
                raise DamagedListError(f"{path} has {len(listed)} files and {len(counted)} labels")
            images = [listed_file(file, "Images", path) for file in listed]
            files[split] = list(zip(images, counted, strict=True))
            for file, label in files[split]:
                breed = PurePosixPath(file).parent.name
                if breeds.setdefault(label, breed) != breed:
                    names = f"{shown(breeds[label])} and to {shown(breed)}"
                    raise DamagedListError(f"{path} gives label {label + 1} to {names}")
        if not breeds:
            raise DamagedListError(f"{path} lists no images")
        class_names = [breeds.get(label, f"class {label + 1}") for label in range(max(breeds) + 1)]
        return Lists(class_names, files)

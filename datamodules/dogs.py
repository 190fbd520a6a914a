"""Stanford Dogs."""

from __future__ import annotations

from pathlib import PurePosixPath

from datamodules.fine_grained import FineGrained
from datamodules.image_files import Files, Split
from datamodules.official_lists import DamagedListError, Lists, labels_from_one, read_mat

LISTS: dict[Split, str] = {"train": "train_list.mat", "val": "test_list.mat"}


class Dogs(FineGrained):
    """Stanford Dogs: 120 breeds, 12,000 images for training, 8,580 for evaluation.

    Its images are ImageNet's. A network pre-trained on ImageNet has seen most of this test set with its labels:
    accuracies after such a pre-training, the published ones included, are too high.

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
            files[split] = [(f"Images/{file}", label) for file, label in zip(listed, counted, strict=True)]
            for file, label in zip(listed, counted, strict=True):
                breed = PurePosixPath(str(file)).parent.name
                if breeds.setdefault(label, breed) != breed:
                    raise DamagedListError(f"{path} gives label {label + 1} to {breeds[label]} and to {breed}")
        class_names = [breeds.get(label, f"class {label + 1}") for label in range(max(breeds) + 1)]
        return Lists(class_names, files)

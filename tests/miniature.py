"""Miniature data sets in the official layouts: JPEGs whose grey level depends on the class, .mat and pickle files."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

CLASSES = ("n03-zebra", "n01-ant", "n02-bee")
"""In the order of the official labels 1, 2, 3, which is not the order of the names."""

SPLITS = {"train": (3, 2, 4), "val": (1, 2, 2)}
"""Images of each class: 9 for training and 5, an odd number, for evaluation."""


def write_jpeg(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (level,) * 3).save(path, quality=95)


def level(label):
    return 60 + 60 * label


def images():
    """(split, official label from 1, class, file) of every image, the classes interleaved."""
    rows = []
    for split, counts in SPLITS.items():
        for number, label in itertools.product(range(max(counts)), (2, 3, 1)):
            if number < counts[label - 1]:
                name = CLASSES[label - 1]
                rows.append((split, label, name, f"{split}_{name}_{number}.jpg"))
    return rows[::2] + rows[1::2]


def expected(split):
    """File names and labels from 0, by the official labels."""
    return {file: label - 1 for row_split, label, _, file in images() if row_split == split}


def write_class_folders(root, evaluation="val"):
    """Class folders; labels follow the order of their names."""
    for split, label, name, file in images():
        write_jpeg(root / ("train" if split == "train" else evaluation) / name / file, level(label - 1))
    return root


def expected_in_folders(split):
    order = sorted(CLASSES)
    return {file: order.index(name) for row_split, _, name, file in images() if row_split == split}


def write_birds(root):
    home = root / "CUB_200_2011"
    rows = images()
    for _, label, name, file in rows:
        write_jpeg(home / "images" / name / file, level(label - 1))
    lines = {
        "images.txt": [f"{i} {name}/{file}" for i, (_, _, name, file) in enumerate(rows, 1)],
        # another order than images.txt: lines belong together by their number
        "image_class_labels.txt": [f"{i} {label}" for i, (_, label, _, _) in enumerate(rows, 1)][::-1],
        "train_test_split.txt": [f"{i} {int(split == 'train')}" for i, (split, *_) in enumerate(rows, 1)][::-1],
        "classes.txt": [f"{i} {name}" for i, name in enumerate(CLASSES, 1)],
        "bounding_boxes.txt": [f"{i} 1.0 1.0 38.0 28.0" for i in range(1, len(rows) + 1)],
    }
    for file, content in lines.items():
        (home / file).write_text("\n".join(content) + "\n")
    return root


def write_dogs(root, lists="."):
    (root / lists).mkdir(parents=True, exist_ok=True)
    for _, label, name, file in images():
        write_jpeg(root / "Images" / name / file, level(label - 1))
    for split, list_name in (("train", "train_list"), ("val", "test_list")):
        rows = [row for row in images() if row[0] == split]
        content = {
            "file_list": np.array([f"{name}/{file}" for _, _, name, file in rows], dtype=object)[:, None],
            "labels": np.array([[label] for _, label, _, _ in rows]),
        }
        scipy.io.savemat(root / lists / f"{list_name}.mat", content)
    return root


def _struct(rows, **columns):
    """A 1 x n MATLAB struct array."""
    table = np.zeros((1, len(rows)), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        for i, value in enumerate(values):
            table[name][0, i] = value
    return table


def _cars_rows(split):
    """Cars' images have numbers for names."""
    return [(label, file) for row_split, label, _, file in images() if row_split == split]


def write_cars_devkit(root, test_labels="stanford_cars"):
    """`test_labels`: where the labels of the test images lie, ``stanford_cars`` or ``stanford_cars/devkit``."""
    home = root / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    names = np.array(CLASSES, dtype=object)[None]
    scipy.io.savemat(home / "devkit" / "cars_meta.mat", {"class_names": names})
    files = {
        "train": home / "devkit" / "cars_train_annos.mat",
        "val": root / test_labels / "cars_test_annos_withlabels.mat",
    }
    for split, folder in (("train", "cars_train"), ("val", "cars_test")):
        rows = _cars_rows(split)
        for label, file in rows:
            write_jpeg(home / folder / file, level(label - 1))
        labels, names = [label for label, _ in rows], [file for _, file in rows]
        boxes = [[1] * len(rows)] * 4
        columns = dict(zip(("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), boxes, strict=True))
        scipy.io.savemat(files[split], {"annotations": _struct(rows, **columns, **{"class": labels}, fname=names)})
    return root


def write_cars_one_list(root):
    rows = [(split, label, file) for split, label, _, file in images()][::-1]
    for _, label, file in rows:
        write_jpeg(root / "car_ims" / file, level(label - 1))
    annotations = _struct(
        rows,
        relative_im_path=[f"car_ims/{file}" for _, _, file in rows],
        **{"class": [label for _, label, _ in rows], "test": [int(split == "val") for split, _, _ in rows]},
    )
    content = {"annotations": annotations, "class_names": np.array(CLASSES, dtype=object)[None]}
    scipy.io.savemat(root / "cars_annos.mat", content)
    return root


CIFAR = {
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta", ""),
    100: ("cifar-100-python", ["train"], "test", "meta", "fine_"),
}


def write_cifar(root, classes=10):
    """Pickles of CIFAR's form: 4 images a file, of the grey levels of their labels 0, 1, 2, 0."""
    folder, train, test, meta, prefix = CIFAR[classes]
    home = root / folder
    home.mkdir(parents=True)
    for file in [*train, test]:
        labels = [0, 1, 2, 0]
        data = np.array([np.full(3072, level(label), dtype=np.uint8) for label in labels])
        content = {"data": data, (prefix or "") + "labels": labels, "coarse_labels": [7] * 4}
        (home / file).write_bytes(pickle.dumps(content))
    key = "fine_label_names" if prefix else "label_names"
    (home / meta).write_bytes(pickle.dumps({key: list(CLASSES), "coarse_label_names": ["wrong"]}))
    return root


def cut(path):
    """Truncate an image in its data."""
    path.write_bytes(path.read_bytes()[:-120])
    return path


class Miniature:
    """The functions above, as one fixture for the tests."""

    classes, splits = CLASSES, SPLITS
    level, jpeg, cut = staticmethod(level), staticmethod(write_jpeg), staticmethod(cut)
    expected, expected_in_folders = staticmethod(expected), staticmethod(expected_in_folders)
    class_folders, birds, dogs = staticmethod(write_class_folders), staticmethod(write_birds), staticmethod(write_dogs)
    cars_devkit, cars_one_list = staticmethod(write_cars_devkit), staticmethod(write_cars_one_list)
    cifar = staticmethod(write_cifar)

    @staticmethod
    def found(data, split):
        """File names and labels that a data module found."""
        return {Path(file).name: label for file, label in data.files(split)}

    @staticmethod
    def check(data, expected):
        """Names, labels and pixels of both splits: the grey level of each image belongs to its label."""
        data.setup("fit")
        data.setup("test")
        for split, dataset in (("train", data.train_set), ("val", data.val_set)):
            assert Miniature.found(data, split) == expected(split)
            assert len(dataset) == len(expected(split)) == data.split_sizes[split]
            for index in range(len(dataset)):
                _, label = dataset[index]
                assert label == expected(split)[dataset.path(index).name]
        assert data.test_set.files.tolist() == data.val_set.files.tolist()


@pytest.fixture(scope="session")
def mini():
    return Miniature

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import ImageFolder

CLASSES = {"ant": 10, "bee": 4, "cat": 2, "dog": 1}
"""Number of images of each class."""


def write(folder, classes=CLASSES):
    for name, number in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(number):
            Image.effect_noise((40, 30), 50).convert("RGB").save(folder / name / f"{i}.jpg")
    return folder


def photographs(root, **options):
    return ImageFolder(str(root), **{"num_workers": 0, "batch_size": 2, "image_size": 16, **options})


def counts(files):
    """Number of images of each class."""
    labels = [label for _, label in files]
    return [labels.count(label) for label in range(len(CLASSES))]


def names(files):
    return {file for file, _ in files}


def apart(root):
    write(root / "train")
    write(root / "val", {"ant": 2, "bee": 1, "cat": 1, "dog": 1})
    return root


def test_folders_for_training_and_validation(tmp_path):
    data = photographs(apart(tmp_path))
    assert data.class_names == list(CLASSES)
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (17, 5)
    assert data.split_sizes == {"train": 17, "val": 5}
    data.setup("test")
    assert data.test_set.files.tolist() == data.val_set.files.tolist()


@pytest.mark.parametrize(("present", "expected"), [(("val", "test"), {"val": 5, "test": 7}), (("test",), {"val": 7})])
def test_a_test_folder(tmp_path, present, expected):
    write(tmp_path / "train")
    if "val" in present:
        write(tmp_path / "val", {"ant": 2, "bee": 1, "cat": 1, "dog": 1})
    write(tmp_path / "test", {"ant": 2, "bee": 2, "cat": 2, "dog": 1})
    data = photographs(tmp_path)
    data.setup("validate")
    data.setup("test")
    assert len(data.val_set) == expected["val"]
    assert len(data.test_set) == expected.get("test", expected["val"])


def test_one_folder_is_split_by_class(tmp_path):
    data = photographs(write(tmp_path))
    training, validation = data.files("train"), data.files("val")
    assert data.class_names == list(CLASSES)
    assert counts(validation) == [2, 1, 1, 0]  # a fifth of each class; a class of one image is for training
    assert counts(training) == [8, 3, 1, 1]
    assert names(training).isdisjoint(names(validation))
    assert len(names(training) | names(validation)) == sum(CLASSES.values())
    assert data.files("test") == validation


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_a_class_of_two_images_has_one_on_each_side(tmp_path, fraction):
    data = photographs(write(tmp_path), val_fraction=fraction)
    for files in (data.files("train"), data.files("val")):
        assert all(count >= 1 for count in counts(files)[:3])


def test_the_split_depends_on_names_and_split_seed_only(tmp_path, monkeypatch):
    first = names(photographs(write(tmp_path / "one")).files("val"))
    moved = shutil.copytree(tmp_path / "one", tmp_path / "two")
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder):
            self.entries = sorted(scandir(folder), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(os, "scandir", Reversed)
    assert names(photographs(moved).files("val")) == first
    assert names(photographs(moved, split_seed=1).files("val")) != first


def test_added_photographs_leave_the_others_of_their_class_nearly_where_they_were(tmp_path):
    before = names(photographs(write(tmp_path, {"ant": 50, "bee": 5})).files("val"))
    for i in range(50, 55):
        shutil.copy(tmp_path / "ant" / "0.jpg", tmp_path / "ant" / f"{i}.jpg")
    after = names(photographs(tmp_path).files("val"))
    assert len(before & after) >= len(before) - 5
    assert {file for file in before if file.startswith("bee")} == {file for file in after if file.startswith("bee")}


def error(root, split="train", **options):
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        photographs(root, **options).files(split)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix("ImageFolder: ").partition(f"; {root} should hold ")[0].replace(f"{root}/", "")


def test_errors_say_what_was_found(tmp_path):
    assert error(tmp_path / "none") == f"data.root {tmp_path}/none is not a folder"
    (tmp_path / "flat").mkdir()
    for i in range(3):
        (tmp_path / "flat" / f"{i}.jpg").touch()
    assert error(tmp_path / "flat") == f"{tmp_path}/flat holds 3 images and no class folders"
    write(tmp_path / "one", {"ant": 2})
    assert error(tmp_path / "one") == f"{tmp_path}/one holds only one class folder, ant/"
    write(tmp_path / "single", {"ant": 1, "bee": 1})
    assert error(tmp_path / "single") == "no class has two images, one for training and one for validation"


def test_empty_class_folders_are_named(tmp_path, recwarn):
    root = apart(tmp_path)
    (root / "train" / "eel").mkdir()
    (root / "train" / "fly").mkdir()
    assert error(root) == "no images in train/eel, train/fly"
    (root / "train" / "eel").rmdir()
    (root / "train" / "fly").rmdir()
    for image in (root / "val" / "cat").iterdir():
        image.unlink()
    assert len(photographs(root).files("val")) == 4
    assert [str(w.message) for w in recwarn] == [f"no validation images in {root}/val/cat"]
    for image in (root / "val").rglob("*.jpg"):
        image.unlink()
    assert error(root, "val") == "no images in val/ant, val/bee, val/cat, val/dog"


def test_images_one_level_deeper_are_named(tmp_path, recwarn):
    write(tmp_path / "train", {"ant": 2, "bee": 2})
    write(tmp_path / "valid", {"ant": 1})
    assert error(tmp_path) == "no images in train, valid, but one level deeper: train/ant/0.jpg, " + (
        "train/bee/0.jpg, valid/ant/0.jpg"
    )
    write(tmp_path / "train" / "ant", {"left": 2})
    assert len(names(photographs(tmp_path / "train").files("train"))) == 2
    (message,) = [str(w.message) for w in recwarn]
    assert message.endswith(f"one level deeper, are not used: {tmp_path}/train/ant/left/0.jpg")


def test_many_folders_are_named_in_part(tmp_path):
    root = write(tmp_path, {"ant": 2})
    for i in range(8):
        (root / f"class{i}").mkdir()
    assert error(root) == "no images in class0, class1, class2, class3, class4 and 3 more"


def test_a_class_that_train_lacks(tmp_path):
    root = apart(tmp_path)
    write(root / "val", {"yak": 1})
    assert error(root, "val") == "val/yak is a class that train/ does not have"


def test_files_that_are_not_images_are_left_out_and_hidden_ones_are_not_mentioned(tmp_path, caplog):
    root = write(tmp_path)
    for name in ("ant/notes.txt", "ant/._0.jpg", ".DS_Store", "list.csv"):
        (root / name).touch()
    with caplog.at_level("INFO"):
        data = photographs(root)
        data.setup("fit")
    assert (
        f"left out, because they are not images in class folders: {root}/list.csv, {root}/ant/notes.txt" in caplog.text
    )
    assert caplog.text.count("left out") == 1
    assert f"13 training and 4 validation images of 4 classes in {root}" in caplog.text
    assert ".DS_Store" not in caplog.text
    assert "._0" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "data.image_size must be at least 1, got 0"),
        ({"val_fraction": 0}, "data.val_fraction must lie between 0 and 1, got 0"),
        ({"val_fraction": 1.0}, "data.val_fraction must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        photographs("nowhere", **options)


def test_sizes():
    """A picture whose left half is white: 160 x 80 pixels."""
    image = Image.new("RGB", (160, 80))
    image.paste((255, 255, 255), (0, 0, 80, 80))
    cropped = photographs("nowhere", image_size=35).evaluate_transform(image)
    squeezed = photographs("nowhere", image_size=35, resize="squeeze").evaluate_transform(image)
    for seen in (cropped, squeezed):
        assert seen.shape == (3, 35, 35)
        assert (seen[0] > 0).float().mean().item() == pytest.approx(0.5, abs=0.03)  # both halves, from the centre
    data = photographs("nowhere", image_size=35)
    torch.manual_seed(0)
    shares = {round((data.train_transform(image)[0] > 0).float().mean().item(), 1) for _ in range(60)}
    assert {0.0, 1.0} <= shares  # squares from the left and from the right


@pytest.mark.parametrize("flip", [True, False])
def test_horizontal_flip(flip):
    image = Image.new("RGB", (16, 16))
    image.paste((255, 255, 255), (0, 0, 8, 16))
    data = photographs("nowhere", resize="squeeze", horizontal_flip=flip)
    torch.manual_seed(0)
    assert {bool(data.train_transform(image)[0, 0, 0] > 0) for _ in range(30)} == {True, not flip}


def test_class_names_need_only_the_folders(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
    data = photographs(tmp_path)
    assert data.class_names == ["a", "b"]
    data.setup("predict")


def test_a_class_that_is_called_train(tmp_path):
    """Vehicles: without val/ or test/ beside it, train/ is a class."""
    data = photographs(write(tmp_path, {"bus": 3, "train": 3}))
    assert data.class_names == ["bus", "train"]
    assert Path(data.files("train")[-1][0]).parent.name == "train"

"""The published data sets: class folders, missing data, official counts."""

import re
import shutil

import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from datamodules import CIFAR10, CIFAR100, Birds, Cars, Dogs, ImageFolder, ImageNet, Textures

ALL = (ImageNet, CIFAR10, CIFAR100, Birds, Dogs, Cars)


def build(kind, root, **options):
    return kind(str(root), **{"num_workers": 0, "check_counts": False, "batch_size": 3, **options})


@pytest.mark.parametrize("evaluation", ["val", "test"])
@pytest.mark.parametrize("kind", ALL)
def test_plain_class_folders(tmp_path, mini, kind, evaluation):
    mini.class_folders(tmp_path, evaluation)
    (tmp_path / "train" / sorted(mini.classes)[0] / "._junk.jpg").touch()
    (tmp_path / "train" / sorted(mini.classes)[0] / "notes.txt").touch()
    (tmp_path / "train" / ".cache").mkdir()
    mini.check(build(kind, tmp_path), mini.expected_in_folders)


@pytest.mark.parametrize("kind", ALL)
def test_nothing_there(tmp_path, kind):
    data = build(kind, tmp_path / "nope")
    with pytest.raises(
        FileNotFoundError, match=rf"^{kind.__name__}: data.root .*nope is not a folder; the data: [^\n]+$"
    ):
        data.setup("fit")
    data = build(kind, tmp_path)
    message = rf"^{kind.__name__}: {tmp_path} has neither {re.escape(kind.layout)} nor class folders [^\n]*; the data: "
    with pytest.raises(FileNotFoundError, match=message + re.escape(kind.source)):
        data.setup("fit")


@pytest.mark.parametrize("kind", ALL)
def test_counts_are_checked_unless_told_otherwise(tmp_path, mini, kind):
    mini.class_folders(tmp_path)
    official = type(kind.__name__, (kind,), {"num_classes": 3, "sizes": {"train": 9, "val": 6}})
    message = (
        rf"^{kind.__name__}: 5 val images instead of 6 in .*; data.check_counts false uses it as it is; the data: "
    )
    with pytest.raises(FileNotFoundError, match=message):
        build(official, tmp_path, check_counts=True).setup("validate")
    build(official, tmp_path).setup("validate")
    official.sizes = {"train": 9, "val": 5}
    build(official, tmp_path, check_counts=True).setup("fit")


@pytest.mark.parametrize("kind", ALL)
def test_names_sizes_and_normalisation_need_no_image(tmp_path, mini, kind):
    mini.class_folders(tmp_path)
    for path in tmp_path.rglob("*.jpg"):
        path.write_bytes(b"")
    data = build(kind, tmp_path)
    assert data.class_names == sorted(mini.classes)
    assert data.split_sizes == {"train": 9, "val": 5}
    assert all(0 < value < 1 for value in (*kind.mean, *kind.std))


@pytest.mark.parametrize("folder", ["train", "val"])
def test_a_missing_or_empty_folder(tmp_path, mini, folder):
    mini.class_folders(tmp_path)
    for path in (tmp_path / folder).rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"^CIFAR10: no images in {tmp_path}/{folder}/n01-ant, "):
        build(CIFAR10, tmp_path).setup("fit")
    if folder == "val":
        shutil.rmtree(tmp_path / folder)
        with pytest.raises(FileNotFoundError, match=r"has no folder val/ or test/"):
            build(CIFAR10, tmp_path).setup("fit")


def in_training(data, root):
    return sorted(str(root / file) for file, _ in data.files("train"))


def in_prediction(data):
    return [str(path) for path in data.predict_dataloader().dataset.files]


@pytest.mark.parametrize("kind", [*ALL, ImageFolder])
def test_links_and_hidden_files_are_the_same_in_training_and_prediction(tmp_path, mini, kind):
    root = mini.class_folders(tmp_path / "data")
    (root / "train" / "n03-zebra").rename(tmp_path / "elsewhere")
    (root / "train" / "n03-zebra").symlink_to(tmp_path / "elsewhere")  # a linked class
    (root / "train").rename(tmp_path / "train")
    (root / "train").symlink_to(tmp_path / "train")  # a linked split
    bee = root / "train" / "n02-bee"
    (bee / "linked.jpg").symlink_to(next((root / "val" / "n02-bee").iterdir()))
    (bee / ".hidden.jpg").touch()
    (bee / "._linked.jpg").touch()
    mini.jpeg(root / "train" / ".thumbnails" / "1.jpg", 9)
    data = kind(str(root), num_workers=0, predict_folder=str(root / "train"), **options(kind))
    assert len(in_training(data, root)) == 10
    assert in_training(data, root) == in_prediction(data)
    data.setup("fit")
    assert len(data.train_set) == 10


def options(kind):
    return {} if kind is ImageFolder else {"check_counts": False}


@pytest.mark.parametrize("kind", [*ALL, ImageFolder])
@pytest.mark.parametrize("fault", ["empty", "other files", "one level deeper", "hidden"])
def test_a_class_folder_without_usable_images_is_named(tmp_path, mini, kind, fault, recwarn):
    root = mini.class_folders(tmp_path)
    folder = root / "val" / "n02-bee"
    for file in folder.iterdir():
        file.unlink()
    (folder / "notes.txt").touch() if fault == "other files" else None
    (folder / ".1.jpg").touch() if fault == "hidden" else None
    if fault == "one level deeper":
        mini.jpeg(folder / "left" / "1.jpg", 9)
    kind(str(root), num_workers=0, batch_size=2, **options(kind)).setup("validate")
    messages = [str(warning.message) for warning in recwarn]
    assert f"no validation images in {folder}" in messages
    deeper = f"images below class folders, one level deeper, are not used: {folder}/left/1.jpg"
    assert (deeper in messages) == (fault == "one level deeper")


@pytest.mark.parametrize("kind", ALL)
def test_all_images_one_level_deeper(tmp_path, mini, kind):
    mini.class_folders(tmp_path / "train" / "deeper")
    mini.class_folders(tmp_path / "val" / "deeper")
    with pytest.raises(FileNotFoundError, match=rf"no images in {tmp_path}/(train|val)/deeper, but one level deeper: "):
        build(kind, tmp_path).setup("fit")


@pytest.mark.parametrize("kind", [*ALL, ImageFolder])
@pytest.mark.parametrize("chosen", [None, True, False])
def test_orientation_is_the_same_in_training_and_prediction(tmp_path, mini, kind, chosen):
    """The published sets are used as they are stored by default, one's own photographs as they are shown."""
    root = mini.class_folders(tmp_path)
    image = Image.new("RGB", (60, 40))
    image.paste((255, 255, 255), (0, 0, 60, 20))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # shown, the right half is
    for folder in ("train", "val"):
        image.save(root / folder / "n01-ant" / "0.jpg", exif=exif)
    chosen_options = {} if chosen is None else {"apply_orientation": chosen}
    folder = str(root / "val" / "n01-ant")
    data = kind(str(root), num_workers=0, batch_size=2, predict_folder=folder, **options(kind), **chosen_options)
    data.setup("validate")
    evaluated, predicted = data.val_set[0][0][0], data.predict_dataloader().dataset[0].image[0]
    assert torch.equal(evaluated, predicted)
    applied = kind is ImageFolder if chosen is None else chosen
    quarter = evaluated.shape[-1] // 4
    assert bool(evaluated[-quarter, -quarter] > evaluated[-quarter, quarter]) == applied
    assert bool(evaluated[quarter, quarter] > evaluated[-quarter, quarter]) != applied


@pytest.mark.parametrize("kind", [*ALL, ImageFolder, Textures])
def test_the_help_describes_every_option_also_those_of_the_base_classes(kind):
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "data")
    described = {action.dest: action.help for action in parser._actions if action.dest.startswith("data.")}
    assert {"data.batch_size", "data.num_workers", "data.predict_folder"} <= described.keys()
    if kind is not Textures:
        assert {"data.root", "data.augmentation", "data.on_unreadable"} <= described.keys()
    for name, text in described.items():
        assert len(text.split()) >= 3, name

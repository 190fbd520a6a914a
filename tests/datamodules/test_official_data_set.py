"""The published data sets: class folders, missing data, official counts."""

import re
import shutil

import pytest
from jsonargparse import ArgumentParser

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

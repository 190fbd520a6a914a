"""Labelled image files: reading them, and those that cannot be read."""

import contextlib
import os
import re

import pytest
import torch
from PIL import Image

from datamodules import CIFAR10
from datamodules.image_reading import UnreadableImageError


@contextlib.contextmanager
def reading_fails(data):
    """Expect the error, and end the loader's processes: the cycle of an exception and its frames would delay that."""
    loader = data.val_dataloader()
    data.val_dataloader = lambda: loader
    with pytest.raises(UnreadableImageError) as caught:
        yield caught
    if loader._iterator is not None:
        loader._iterator._shutdown_workers()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_the_run(small, tmp_path, mini, workers):
    data = small(num_workers=workers)
    bad = mini.cut(sorted(tmp_path.glob("val/*/*.jpg"))[2])
    data.setup("validate")
    with reading_fails(data) as caught:
        list(data.val_dataloader())
    message = rf"^unreadable image {bad}: [^\n]*[Tt]runcated[^\n]* \(data.on_unreadable skip leaves it out\)$"
    assert re.match(message, str(caught.value)), str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_named_once_and_counted(small, tmp_path, mini, capfd, workers):
    data = small(num_workers=workers, on_unreadable="skip")
    files = sorted(tmp_path.glob("val/*/*.jpg"))
    bad = [mini.cut(files[1]), files[3]]
    bad[1].write_text("no image")
    data.setup("validate")
    loader = data.val_dataloader()
    for _ in range(2):  # the second time by the same workers
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [2, 1]
        expected = [mini.expected_in_folders("val")[file.name] for file in files if file not in bad]
        assert torch.cat([labels for _, labels in batches]).tolist() == expected
    data.teardown("validate")
    lines = capfd.readouterr().err.splitlines()
    for file in bad:
        assert len([line for line in lines if line.startswith(f"unreadable, skipped: {file}: ")]) == 1
    assert lines[-1] == "unreadable evaluation images skipped in this process: 2"


def test_nothing_is_said_where_all_could_be_read(small, capfd):
    data = small(on_unreadable="skip")
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 3
    assert len(list(data.val_dataloader())) == 2
    data.teardown("fit")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_without_any_readable_image(small, tmp_path, mini, workers):
    data = small(num_workers=workers, on_unreadable="skip")
    for file in tmp_path.glob("val/*/*.jpg"):
        mini.cut(file)
    data.setup("validate")
    with reading_fails(data) as caught:
        list(data.val_dataloader())
    assert re.match(r"^none of the 3 images of a batch can be read: [^\n]*$", str(caught.value))


def test_a_class_of_which_no_image_can_be_read_is_named(small, tmp_path, mini, capfd):
    data = small(on_unreadable="skip")
    for file in (tmp_path / "val" / "n02-bee").iterdir():
        mini.cut(file)
    data.setup("validate")
    list(data.val_dataloader())
    data.teardown("validate")
    assert capfd.readouterr().err.endswith("none of the evaluation images of the class n02-bee can be read\n")


@pytest.mark.parametrize("skip", [True, False])
def test_names_of_any_bytes_are_named(small, tmp_path, skip, capfd):
    """Bytes that are not UTF-8, and control characters, which a terminal would obey."""
    data = small(on_unreadable="skip" if skip else "error", batch_size=2)
    folder = tmp_path / "val" / "n01-ant"
    (folder / os.fsdecode(b"0\x1b[2J\xff.jpg")).write_text("no image")
    data.setup("validate")
    if skip:
        list(data.val_dataloader())
        text = capfd.readouterr().err
    else:
        with reading_fails(data) as caught:
            list(data.val_dataloader())
        text = str(caught.value)
    assert r"n01-ant/0\x1b[2J\udcff.jpg: cannot identify" in text


def test_a_file_that_vanishes_after_it_was_listed(small, tmp_path):
    data = small()
    data.setup("validate")
    next((tmp_path / "val" / "n01-ant").iterdir()).unlink()
    with reading_fails(data) as caught:
        list(data.val_dataloader())
    assert "No such file" in str(caught.value)


def test_shared_memory_is_used_for_loader_processes_only(small):
    for workers in (0, 1):
        data = small(num_workers=workers)
        data.setup("validate")
        assert data.val_set.unreadable.is_shared() == (workers > 0)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_every_mode(tmp_path, mini, mode):
    path = tmp_path / "train" / "a" / "image.tif"
    path.parent.mkdir(parents=True)
    Image.new(mode, (32, 32), {"I;16": 200 * 257 + 30, "L": 200}.get(mode)).save(path)
    (tmp_path / "val" / "a").mkdir(parents=True)
    data = CIFAR10(str(tmp_path), num_workers=0, check_counts=False)
    image, _ = data.dataset("train", data.val_transform)[0]
    assert image.shape == (3, 32, 32)
    if mode in ("L", "I;16"):
        assert image[0, 0, 0] * data.std[0] + data.mean[0] == pytest.approx(200 / 255, abs=2 / 255)

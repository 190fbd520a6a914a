"""Labelled image files: reading them, and those that cannot be read."""

import contextlib
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

"""What all data sets on disk share, shown with one or all of them."""

import contextlib
import re
import shutil

import pytest
import torch
from PIL import Image

from datamodules import CIFAR10, CIFAR100, Birds, Cars, Dogs, ImageNet
from datamodules.image_reading import UnreadableImageError

ALL = (ImageNet, CIFAR10, CIFAR100, Birds, Dogs, Cars)


def build(kind, root, **options):
    return kind(str(root), **{"num_workers": 0, "check_counts": False, "batch_size": 3, **options})


@pytest.fixture
def small(tmp_path, mini):
    """CIFAR-10 in class folders, the fastest."""

    def make(**options):
        if not (tmp_path / "train").exists():
            mini.class_folders(tmp_path)
        return build(CIFAR10, tmp_path, **options)

    return make


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
    with pytest.raises(FileNotFoundError, match=rf"^{kind.__name__}: data.root .*nope is not a folder; the data: [^\n]+$"):
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
    with pytest.raises(FileNotFoundError, match=rf"^CIFAR10: no {folder} images in {tmp_path}"):
        build(CIFAR10, tmp_path).setup("fit")
    if folder == "val":
        shutil.rmtree(tmp_path / folder)
        with pytest.raises(FileNotFoundError, match=r"has no folder val/ or test/"):
            build(CIFAR10, tmp_path).setup("fit")


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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_fixes_order_and_augmentation(small, workers, monkeypatch):
    def epoch(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))  # what seed_everything leaves behind
        data = small(num_workers=workers)
        data.setup("fit")
        return [torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True)]

    first, second, other = epoch(1), epoch(1), epoch(2)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])


def test_workers_and_epochs_augment_differently(tmp_path, mini):
    """One image of noise many times over: equal random numbers would give equal crops."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "val" / "a").mkdir(parents=True)
    for i in range(12):
        Image.radial_gradient("L").resize((32, 32)).save(tmp_path / "train" / "a" / f"{i}.png")
    data = build(CIFAR10, tmp_path, num_workers=2, batch_size=6)
    data.train_set = data.dataset("train", data.train_transform)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([images for images, _ in loader])
    assert not torch.equal(epochs[0][0], epochs[0][1])  # one batch of each worker
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert len({tuple(image.flatten().tolist()) for batch in epochs[0] for image in batch}) > 6


def test_loaders(small, monkeypatch):
    data = small(num_workers=2)
    data.setup("fit")
    assert data.train_dataloader().persistent_workers
    assert not data.val_dataloader().drop_last
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data.train_dataloader().pin_memory


@pytest.mark.parametrize("processes", [2, 3])
def test_every_evaluation_image_is_seen_once_over_all_processes(small, processes):
    data = small(batch_size=6)
    data.setup("fit")
    seen = []
    for rank in range(processes):
        data.trainer = type("Trainer", (), {"world_size": processes, "global_rank": rank})()
        loader = data.val_dataloader()
        assert loader.batch_size == 6 // processes
        seen += list(loader.sampler)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    data.trainer.world_size = 4
    with pytest.raises(ValueError, match="batch_size 6 does not divide among 4 processes"):
        data.val_dataloader()
    data.trainer.world_size = 6
    with pytest.raises(ValueError, match="evaluation set has 5 images, fewer than the 6 processes"):
        data.val_dataloader()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16"])
def test_images_of_every_mode(tmp_path, mini, mode):
    path = tmp_path / "train" / "a" / "image.tif"
    path.parent.mkdir(parents=True)
    Image.new(mode, (32, 32), {"I;16": 200 * 257 + 30, "L": 200}.get(mode)).save(path)
    (tmp_path / "val" / "a").mkdir(parents=True)
    data = build(CIFAR10, tmp_path)
    image, _ = data.dataset("train", data.val_transform)[0]
    assert image.shape == (3, 32, 32)
    if mode in ("L", "I;16"):
        assert image[0, 0, 0] * data.std[0] + data.mean[0] == pytest.approx(200 / 255, abs=2 / 255)

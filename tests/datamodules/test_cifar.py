import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules import CIFAR10, CIFAR100

KINDS = {CIFAR10: (10, "cifar-10-batches-py", 20), CIFAR100: (100, "cifar-100-python", 4)}


def cifar(kind, root, **options):
    return kind(str(root), **{"num_workers": 0, "check_counts": False, **options})


@pytest.mark.parametrize("kind", KINDS)
def test_official_layout(tmp_path, mini, kind):
    classes, _, training = KINDS[kind]
    data = cifar(kind, mini.cifar(tmp_path, classes))
    data.setup("fit")
    assert data.class_names == list(mini.classes)
    assert data.split_sizes == {"train": training, "val": 4} == {"train": len(data.train_set), "val": len(data.val_set)}
    assert [data.train_set[i][1] for i in range(4)] == [0, 1, 2, 0]
    image, label = data.val_set[1]
    grey = (torch.tensor([mini.level(label) / 255] * 3) - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(image, grey[:, None, None].expand(3, 32, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_checksums_and_counts(tmp_path, mini, kind):
    classes, folder, _ = KINDS[kind]
    message = rf"^{kind.__name__}: \w+ is damaged \(checksum\) in .*/{folder}; data.check_counts false .*toronto.*$"
    with pytest.raises(FileNotFoundError, match=message):
        cifar(kind, mini.cifar(tmp_path, classes), check_counts=True).setup("fit")
    assert (kind.sizes, kind.num_classes) == ({"train": 50000, "val": 10000}, classes)


@pytest.mark.parametrize(("file", "check"), [("data_batch_1", True), ("batches.meta", False), ("test_batch", False)])
def test_a_missing_file(tmp_path, mini, file, check):
    (mini.cifar(tmp_path) / "cifar-10-batches-py" / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^CIFAR10: {file} is missing in .*cifar-10-batches-py.*toronto"):
        cifar(CIFAR10, tmp_path, check_counts=check).setup("fit")


@pytest.mark.parametrize("file", ["data_batch_1", "batches.meta"])
def test_a_truncated_pickle(tmp_path, mini, file):
    path = mini.cifar(tmp_path) / "cifar-10-batches-py" / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"^CIFAR10: .* cannot be read: [^\n]*$"):
        cifar(CIFAR10, tmp_path).setup("fit")


def test_class_folders(tmp_path, mini):
    mini.check(cifar(CIFAR10, mini.class_folders(tmp_path, "test")), mini.expected_in_folders)


def test_a_failed_download(tmp_path, monkeypatch):
    def no_network(*arguments, **options):
        raise OSError("no route")

    monkeypatch.setattr("datamodules.cifar.download_and_extract_archive", no_network)
    cifar(CIFAR10, tmp_path).prepare_data()  # nothing is downloaded unasked
    with pytest.raises(FileNotFoundError, match=r"CIFAR10: the download into .* failed: no route"):
        cifar(CIFAR10, tmp_path, download=True).prepare_data()


def test_class_names_before_the_download(tmp_path):
    """The number of classes cannot be taken from data that are not there yet."""
    with pytest.raises(
        FileNotFoundError, match=r"downloaded only after the model is built: .* --model.num_classes 10;"
    ):
        _ = cifar(CIFAR10, tmp_path, download=True).class_names


def test_a_download_is_read(tmp_path, monkeypatch, mini):
    monkeypatch.setattr(
        "datamodules.cifar.download_and_extract_archive", lambda url, root, **options: mini.cifar(Path(root))
    )
    data = cifar(CIFAR10, tmp_path / "new", download=True)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_set) == 20


def test_training_images_are_shifted_by_up_to_4_pixels_and_flipped(tmp_path):
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (0, 0, 8, 32))
    data = cifar(CIFAR10, tmp_path)
    torch.manual_seed(0)
    seen = [data.train_transform(image)[0] > 0 for _ in range(150)]
    assert all(mask.shape == (32, 32) for mask in seen)
    assert {int(mask.any(1).sum()) for mask in seen} == {28, 29, 30, 31, 32}
    # white is on the left of an image, or on the right of a flipped one, 4 to 8 columns wide or 1 to 4 off the border
    assert any(mask[16, 28:].any() for mask in seen)
    assert {int(mask.any(0).sum()) for mask in seen} == {4, 5, 6, 7, 8}


def test_coarse_labels_are_not_taken(tmp_path, mini):
    path = mini.cifar(tmp_path, 100) / "cifar-100-python" / "train"
    assert "coarse_labels" in pickle.loads(path.read_bytes())
    data = cifar(CIFAR100, tmp_path)
    data.setup("fit")
    assert set(data.train_set.labels) == {0, 1, 2}

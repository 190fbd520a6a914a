import pytest
import scipy.io

from datamodules import Dogs


def dogs(root, **options):
    return Dogs(str(root), **{"num_workers": 0, "check_counts": False, **options})


@pytest.mark.parametrize("lists", [".", "lists"])
def test_official_layouts(tmp_path, mini, lists):
    data = dogs(mini.dogs(tmp_path, lists))
    mini.check(data, mini.expected)
    assert data.class_names == list(mini.classes)


def test_official_counts(tmp_path, mini):
    assert (Dogs.sizes, Dogs.num_classes) == ({"train": 12000, "val": 8580}, 120)
    with pytest.raises(FileNotFoundError, match=r"^Dogs: 3 classes instead of 120 in .*check_counts.*vision\.stanford"):
        Dogs(str(mini.dogs(tmp_path))).setup("fit")


@pytest.mark.parametrize("name", ["train_list.mat", "test_list.mat"])
def test_a_missing_list(tmp_path, mini, name):
    (mini.dogs(tmp_path) / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"^Dogs: {name} is missing in {tmp_path} and {tmp_path}/lists; .*stanford"
    ):
        dogs(tmp_path).setup("fit")


def test_missing_images(tmp_path, mini):
    (mini.dogs(tmp_path) / "Images").rename(tmp_path / "images_elsewhere")
    with pytest.raises(FileNotFoundError, match=r"5 of 5 listed val images are missing, first .*Images/.*stanford"):
        dogs(tmp_path).setup("fit")


def test_damaged_lists(tmp_path, mini):
    path = mini.dogs(tmp_path) / "train_list.mat"
    content = scipy.io.loadmat(path)
    scipy.io.savemat(path, {"file_list": content["file_list"]})
    with pytest.raises(ValueError, match=r"^Dogs: .*train_list.mat has no variable labels"):
        dogs(tmp_path).setup("fit")
    path.write_bytes(b"no matlab file")
    with pytest.raises(ValueError, match=r"^Dogs: .*train_list.mat cannot be read: .*stanford.*$"):
        dogs(tmp_path).setup("fit")


def test_a_label_with_two_breeds(tmp_path, mini):
    path = mini.dogs(tmp_path) / "train_list.mat"
    content = scipy.io.loadmat(path)
    labels = content["labels"]
    labels[:] = 1
    scipy.io.savemat(path, {"file_list": content["file_list"], "labels": labels})
    with pytest.raises(ValueError, match="gives label 1 to"):
        dogs(tmp_path).setup("fit")


def test_the_leak_is_documented():
    assert "pre-trained on ImageNet has seen" in Dogs.__doc__

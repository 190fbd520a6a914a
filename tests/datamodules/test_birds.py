import pytest
import torch
from PIL import Image

from datamodules import Birds


def birds(root, **options):
    return Birds(str(root), **{"num_workers": 0, "batch_size": 2, "check_counts": False, **options})


@pytest.mark.parametrize("root", [".", "CUB_200_2011"])
def test_official_layout(tmp_path, mini, root):
    data = birds(mini.birds(tmp_path) / root)
    mini.check(data, mini.expected)
    assert data.class_names == list(mini.classes)
    assert data.split_sizes == {"train": 9, "val": 5}


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
def test_a_missing_list(tmp_path, mini, file):
    (mini.birds(tmp_path) / "CUB_200_2011" / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"^Birds: {file} is missing in .*/CUB_200_2011; .*caltech\.edu.*$"):
        birds(tmp_path).setup("fit")


def test_missing_images_stop_the_run_or_are_left_out(tmp_path, mini):
    gone = next((mini.birds(tmp_path) / "CUB_200_2011/images").rglob("train_*_0.jpg"))
    gone.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"1 of 9 listed train images are missing, first .*{gone.name}; .*false"
    ):
        Official3(str(tmp_path)).setup("fit")
    data = birds(tmp_path)
    data.setup("fit")
    assert gone.name not in mini.found(data, "train")
    assert len(data.train_set) == 8


class Official3(Birds):
    num_classes = 3
    sizes = {"train": 9, "val": 5}  # noqa: RUF012


def test_official_counts_of_a_complete_copy(tmp_path, mini):
    Official3(str(mini.birds(tmp_path))).setup("fit")
    assert (Birds.sizes, Birds.num_classes) == ({"train": 5994, "val": 5794}, 200)


def test_lists_that_disagree(tmp_path, mini):
    path = mini.birds(tmp_path) / "CUB_200_2011" / "train_test_split.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]))
    with pytest.raises(ValueError, match=r"train_test_split.txt and .*images.txt list different images"):
        birds(tmp_path).setup("fit")
    path.write_text("\n".join(["one", *lines]))
    with pytest.raises(ValueError, match=r"train_test_split.txt has a line 'one'"):
        birds(tmp_path).setup("fit")


@pytest.mark.parametrize("label", [0, 4])
def test_labels_count_from_one(tmp_path, mini, label):
    path = mini.birds(tmp_path) / "CUB_200_2011" / "image_class_labels.txt"
    path.write_text("\n".join([f"14 {label}", *path.read_text().splitlines()[1:]]))
    with pytest.raises(ValueError, match=rf"has the label {label}, expected 1 to 3"):
        birds(tmp_path).setup("fit")


def test_transforms(tmp_path, mini):
    data = birds(mini.birds(tmp_path))
    data.setup("fit")
    image, label = data.val_set[0]
    assert image.shape == (3, 448, 448)
    assert image.dtype == torch.float32
    grey = mini.level(label) / 255
    expected = (grey - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(image.mean((1, 2)), expected, rtol=0, atol=0.02)


def test_training_images_are_flipped_and_the_whole_is_seen(tmp_path, mini):
    image = Image.new("RGB", (90, 60))
    image.paste((255, 255, 255), (0, 0, 30, 60))  # the left third is white
    data = birds(mini.birds(tmp_path))
    torch.manual_seed(0)
    seen = {tuple((data.train_transform(image)[0].mean(0)[[50, 224, 398]] > 0).tolist()) for _ in range(30)}
    assert seen == {(True, False, False), (False, False, True)}
    evaluated = data.evaluate_transform(image)[0]
    assert (evaluated[0] > 0).float().mean().item() == pytest.approx(1 / 3, abs=0.01)

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datamodules import ImageNet


def imagenet(root, **options):
    return ImageNet(str(root), **{"num_workers": 0, "check_counts": False, **options})


def test_class_folders(tmp_path, mini):
    data = imagenet(mini.class_folders(tmp_path))
    mini.check(data, mini.expected_in_folders)
    assert data.class_names == sorted(mini.classes)


def test_names_from_meta_bin(tmp_path, mini):
    first = sorted(mini.classes)[0]
    torch.save(({first: ("tench", "Tinca tinca")}, [first]), mini.class_folders(tmp_path) / "meta.bin")
    data = imagenet(tmp_path)
    assert data.class_names == ["tench, Tinca tinca", *sorted(mini.classes)[1:]]
    mini.check(data, mini.expected_in_folders)
    (tmp_path / "meta.bin").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"ImageNet: .*meta.bin cannot be read"):
        imagenet(tmp_path).setup("fit")


def test_a_flat_validation_folder(tmp_path, mini):
    mini.class_folders(tmp_path)
    (tmp_path / "val").rename(tmp_path / "old")
    for i in range(3):
        mini.jpeg(tmp_path / "val" / f"ILSVRC2012_val_0000000{i}.JPEG", 9)
    for stage in ("fit", "validate"):
        with pytest.raises(
            FileNotFoundError, match=r"^ImageNet: .*/val holds 3 files and no class folders: sort them .*valprep"
        ):
            imagenet(tmp_path).setup(stage)


def test_train_archives_that_are_not_unpacked(tmp_path, mini):
    mini.class_folders(tmp_path)
    (tmp_path / "train").rename(tmp_path / "old")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01440764.tar").touch()
    with pytest.raises(
        FileNotFoundError, match=r"train holds 1 files and no class folders; the data: https://image-net"
    ):
        imagenet(tmp_path).setup("fit")


def test_validation_works_without_training_images(tmp_path, mini):
    mini.class_folders(tmp_path)
    (tmp_path / "train").rename(tmp_path / "old")
    data = imagenet(tmp_path)
    data.setup("validate")
    assert mini.found(data, "val") == mini.expected_in_folders("val")
    with pytest.raises(FileNotFoundError, match="has no folder train/"):
        data.setup("fit")


def test_labels_are_those_of_train_when_val_lacks_a_class(tmp_path, mini):
    mini.class_folders(tmp_path)
    first = sorted(mini.classes)[0]
    (tmp_path / "val" / first).rename(tmp_path / "old")
    data = imagenet(tmp_path)
    kept = {file: label for file, label in mini.expected_in_folders("val").items() if first not in file}
    assert mini.found(data, "val") == kept
    (tmp_path / "old").rename(tmp_path / "val" / "n99")
    with pytest.raises(FileNotFoundError, match="val/n99 is a class that train/ does not have"):
        imagenet(tmp_path).setup("fit")


def test_counts(tmp_path, mini):
    assert (ImageNet.sizes, ImageNet.num_classes) == ({"train": 1281167, "val": 50000}, 1000)
    message = r"^ImageNet: 3 classes instead of 1000 in .*; data.check_counts false uses it as it is; the data: .*$"
    with pytest.raises(FileNotFoundError, match=message):
        imagenet(mini.class_folders(tmp_path), check_counts=True).setup("fit")


def test_transforms():
    data = imagenet("nowhere")
    image = Image.effect_noise((500, 320), 60)
    evaluated = data.evaluate_transform(image)
    assert evaluated.shape == (3, 224, 224)
    # the centre of the image at 256 x 256, whatever its shape was
    resized = v2.functional.pil_to_tensor(image.resize((256, 256), Image.Resampling.BILINEAR))[0] / 255
    expected = (resized[16:240, 16:240] - data.mean[0]) / data.std[0]
    torch.testing.assert_close(evaluated[0], expected, rtol=0, atol=0.03)


def test_training_takes_crops_everywhere_and_flips():
    data = imagenet("nowhere")
    ramp = Image.linear_gradient("L").rotate(90).convert("RGB")  # 256 x 256, each column its own level
    torch.manual_seed(0)
    starts, flips = set(), set()
    for _ in range(60):
        levels = (data.train_transform(ramp)[0, 100] * data.std[0] + data.mean[0]) * 255
        flips.add(bool(levels[0] > levels[-1]))
        starts.add(round(levels.min().item()))
    assert flips == {True, False}
    assert min(starts) < 5
    assert max(starts) > 27

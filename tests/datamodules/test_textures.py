import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Textures
from datamodules.textures import PHOTOGRAPHS, REGIONS, SIZE, _grey_square


def sets(**arguments):
    data = Textures(**arguments)
    data.setup("fit")
    data.setup("test")
    return data


def test_regions_share_no_pixel_and_leave_gaps():
    ends = sorted((start, end) for start, end, _ in REGIONS.values())
    assert ends[0][0] == 0
    assert ends[-1][1] == SIZE
    assert all(following[0] - previous[1] >= 16 for previous, following in itertools.pairwise(ends))


def test_patches_are_balanced_standardised_and_three_equal_channels():
    data = sets()
    for split in (data.train_set, data.val_set, data.test_set):
        images, labels = split.tensors
        assert images.shape[1:] == (3, 48, 48)
        assert len(labels.bincount().unique()) == 1
        assert labels.unique().tolist() == list(range(6))
        assert torch.equal(images[:, 0], images[:, 1])
        torch.testing.assert_close(images.mean((1, 2, 3)), torch.zeros(len(images)), rtol=0, atol=1e-4)
        deviation = images[:, 0].std((1, 2))
        assert ((deviation - 1).abs() < 1e-4).float().mean() > 0.95  # all but flat patches of the dark sky


def test_noise_of_the_deviation_that_was_asked_for():
    clean, noisy = sets(), sets(noise=2.0)
    for split in ("train_set", "val_set"):
        x, y = (getattr(data, split).tensors[0][:, 0].flatten(1) for data in (clean, noisy))
        # of two independent parts of deviation 1 and 2 the first makes 1 / sqrt(5); 2304 pixels, and flat patches apart
        share = (x * y).mean(1)[x.std(1) > 0.99]
        assert share.mean().item() == pytest.approx(5**-0.5, abs=0.005)
        torch.testing.assert_close(y.std(1), torch.ones(len(y)), rtol=0, atol=1e-3)
    noises = [getattr(noisy, split).tensors[0][0] for split in ("train_set", "val_set", "test_set")]
    assert not torch.equal(noises[0], noises[1])


@pytest.mark.parametrize("arguments", [{}, {"noise": 1.0}])
def test_the_same_every_time(arguments):
    first, second = sets(**arguments), sets(**arguments)
    assert torch.equal(first.train_set.tensors[0], second.train_set.tensors[0])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_patches_lie_in_their_region_of_the_photograph(split):
    start, end, step = REGIONS[split]
    data = sets(patch_size=32)
    images, _ = getattr(data, f"{split}_set").tensors
    pixels = np.asarray(_grey_square("brick"), dtype=np.float32) / 255
    last_column = start + (end - start - 32) // step * step
    patch = torch.from_numpy(pixels[:32, last_column : last_column + 32])
    expected = (patch - patch.mean()) / patch.std()
    index = (end - start - 32) // step
    torch.testing.assert_close(images[index, 0], expected, rtol=1e-4, atol=1e-5)


def test_batch_size_is_global():
    data = Textures(batch_size=64)
    data.setup("fit")
    loop = SimpleNamespace(epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0)))
    data.trainer = SimpleNamespace(world_size=2, global_rank=0, fit_loop=loop)
    assert data.train_dataloader().batch_size == 32
    data.trainer.world_size = 3
    with pytest.raises(ValueError, match="64 does not divide among 3 processes"):
        data.train_dataloader()


def test_too_large_a_batch_is_an_error():
    data = Textures(batch_size=10**6)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"fewer than data\.batch_size"):
        data.train_dataloader()


@pytest.mark.parametrize("size", [(48, 48), (300, 200), (20, 90), (1, 1)])
def test_evaluation_takes_images_of_any_size_and_mode(size):
    for mode in ("L", "RGB", "RGBA", "P", "1", "CMYK"):
        assert Textures().evaluate_transform(Image.new(mode, size)).shape == (3, 48, 48)


def test_evaluation_takes_the_centre():
    photograph = _grey_square("brick")
    expected = np.asarray(photograph, dtype=np.float32)[232:280, 232:280]
    seen = Textures().evaluate_transform(photograph)[0]
    correlation = np.corrcoef(seen.numpy().ravel(), expected.ravel())[0, 1]
    assert correlation > 1 - 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patch_size": 100}, "between 16 and 80"),
        ({"num_workers": -1}, "num_workers must not be negative"),
        ({"noise": -1}, "data.noise must be a number of at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Textures(**arguments)


def test_class_names_need_no_image():
    assert Textures().class_names == list(PHOTOGRAPHS)

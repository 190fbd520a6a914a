"""The augmentation of one's own: its place, its seed, and that every data set of image files takes it."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datamodules import CIFAR10, CIFAR100, Birds, Cars, Dogs, ImageFolder, ImageNet
from datamodules.resumable_sampler import SeededDataset, SeededIndex
from datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, to_network

SIZES = {ImageNet: 224, CIFAR10: 32, CIFAR100: 32, Birds: 448, Dogs: 448, Cars: 448, ImageFolder: 224}


class Recorder:
    def __init__(self):
        self.seen = []

    def __call__(self, image):
        self.seen.append(image)
        return image


@pytest.mark.parametrize("kind", SIZES)
def test_it_takes_8_bit_images_of_the_final_size_in_training_only(kind):
    recorder = Recorder()
    data = kind("nowhere", augmentation=recorder)
    image = Image.effect_noise((60, 50), 50).convert("RGB")
    assert data.train_transform(image).dtype == torch.float32
    data.evaluate_transform(image)
    (seen,) = recorder.seen
    assert seen.dtype == torch.uint8
    assert seen.shape == (3, SIZES[kind], SIZES[kind])


def test_its_result_is_normalised():
    transform = to_network([], IMAGENET_MEAN, IMAGENET_STD, v2.RandomInvert(p=1.0))
    image = Image.new("RGB", (4, 4), (55, 55, 55))
    expected = (torch.tensor([200 / 255] * 3) - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(transform(image)[:, 0, 0], expected)


class Drawn(torch.utils.data.Dataset):
    """Items that an augmentation draws from three generators."""

    def __init__(self):
        self.transform = to_network([], [0.0] * 3, [1.0] * 3, self.augment)
        self.image = torch.zeros(3, 1, 1, dtype=torch.uint8)

    def augment(self, image):
        levels = [torch.randint(256, ()).item(), random.randrange(256), np.random.randint(256)]
        return torch.tensor(levels, dtype=torch.uint8)[:, None, None]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.transform(self.image).flatten()


def test_it_draws_by_the_seed_of_the_image_whichever_generator_it_uses():
    data = SeededDataset(Drawn())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = data[SeededIndex(0, 5)]
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert torch.equal(data[SeededIndex(0, 5)], first)
    assert (data[SeededIndex(0, 6)] != first).all()


def test_it_leaves_the_generators_as_they_were():
    data = SeededDataset(Drawn())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    _ = data[SeededIndex(0, 5)]
    assert (random.random(), np.random.rand(), torch.rand(())) == expected

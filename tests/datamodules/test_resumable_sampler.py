import itertools

import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from datamodules import CIFAR10
from datamodules.resumable_sampler import ResumableSampler, SeededDataset, SeededIndex

IMAGES = 11


def epoch(processes=1, seed=0, number=2, resume=None):
    """The draws of an epoch: for each process, a list."""
    drawn = []
    for rank in range(processes):
        sampler = ResumableSampler(TensorDataset(torch.arange(IMAGES)), processes, rank, seed)
        sampler.set_epoch(number)
        if resume is not None:
            sampler.resume(*resume)
        drawn.append(list(sampler))
    return drawn


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    (first,), (second,) = epoch(number=0), epoch(number=1)
    assert sorted(item.image for item in first) == list(range(IMAGES)) == sorted(item.image for item in second)
    assert [item.image for item in first] != [item.image for item in second]
    assert {item.seed for item in first}.isdisjoint(item.seed for item in second)
    assert epoch(number=1) == [second]
    assert epoch(number=1, seed=1) != [second]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_one(processes):
    (alone,) = epoch()
    shares = epoch(processes)
    interleaved = list(itertools.chain.from_iterable(zip(*shares, strict=True)))
    assert interleaved == alone[: IMAGES // processes * processes]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_epoch_is_the_rest_of_it_and_the_next_is_whole(processes):
    whole = epoch(processes)
    assert epoch(processes, resume=(2, 3)) == [share[3:] for share in whole]
    assert epoch(processes, number=3, resume=(2, 3)) == epoch(processes, number=3)


class Noise(torch.utils.data.Dataset):
    """An item that its transform draws."""

    def transform(self, index):
        return index + torch.rand(())

    def __getitem__(self, index):
        return self.transform(index)


def test_the_seed_determines_the_random_transform_and_nothing_else_is_disturbed():
    data = SeededDataset(Noise())
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    first = torch.rand(())
    items = [data[SeededIndex(0, 7)], data[SeededIndex(0, 7)], data[SeededIndex(0, 8)]]
    assert items[0] == items[1] != items[2]
    assert torch.equal(torch.stack([first, torch.rand(())]), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_fixes_order_and_augmentation(small, workers, monkeypatch):
    def epoch(seed):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))  # as seed_everything leaves it
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
    data = CIFAR10(str(tmp_path), num_workers=2, batch_size=6, check_counts=False)
    data.train_set = data.dataset("train", data.train_transform)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        epochs.append([images for images, _ in loader])
    assert not torch.equal(epochs[0][0], epochs[0][1])  # one batch of each worker
    assert not torch.equal(epochs[0][0], epochs[1][0])
    images = torch.cat(epochs[0]).flatten(1)
    assert len(images.unique(dim=0)) > 6

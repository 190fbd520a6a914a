"""The order and the random augmentation of training images, which a resumed run repeats exactly, also mid-epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler


class SeededIndex(NamedTuple):
    """The index of an image, and the seed of its augmentation."""

    image: int
    seed: int


class ResumableSampler(DistributedSampler[Any]):
    """A random order of the images and seeds of their augmentation, which depend only on the run's seed and the epoch.

    The number of processes does not matter: the batches of all processes together are those of a single one. Nor do
    random numbers that were drawn earlier: an epoch after a resumption is that of the uninterrupted run. (torchdata's
    StatefulDataLoader resumes too, but ties the order to the number of processes.)

    Args:
        dataset: the training images.
        processes: number of processes.
        rank: which of them this is.
        seed: seed of the run.
    """

    def __init__(self, dataset: Dataset[Any], processes: int, rank: int, seed: int) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed, drop_last=processes > 1)
        self._resumed_epoch, self._images_done = -1, 0

    def resume(self, epoch: int, images_done: int) -> None:
        """Leave out, in one epoch, the images of this process that the interrupted run has already trained on."""
        self._resumed_epoch, self._images_done = epoch, images_done

    def __iter__(self) -> Iterator[SeededIndex]:
        # Neighbouring seeds and epochs must not give related numbers, which a sum of the two would.
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        images = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(images, generator=generator)
        seeds = torch.randint(2**31, (images,), generator=generator)
        # Dealt out like cards: the k-th batch of all processes together is the k-th batch of a single one.
        own = order[self.rank : self.total_size : self.num_replicas]
        if self.epoch == self._resumed_epoch:
            own = own[self._images_done :]
        for index in own.tolist():
            yield SeededIndex(index, int(seeds[index]))


class SeededDataset(Dataset[Any]):
    """A data set whose items are accessed by `SeededIndex`: the seed determines the item's random ``transform``."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.is_random = hasattr(dataset, "transform")

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, item: SeededIndex | int) -> Any:
        if not isinstance(item, SeededIndex):  # Lightning replaces the sampler for overfit_batches
            return self.dataset[item]
        if not self.is_random:
            return self.dataset[item.image]
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPU, which a forked process must not touch
            torch.default_generator.manual_seed(item.seed)
            return self.dataset[item.image]

"""Training images in an order, and with an augmentation, that a resumed run can go on with inside an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, DistributedSampler


class Draw(NamedTuple):
    """An image of an epoch, and the seed of its augmentation."""

    index: int
    seed: int


class EpochOrder(DistributedSampler[Any]):
    """A random order of the images, and seeds of their augmentation, that depend on seed and epoch only.

    The number of processes does not matter: the batches of all processes together are those of a single one. Nor does
    what was drawn before: an epoch after a resumption is that of the uninterrupted run.

    Args:
        dataset: the training images.
        processes: number of processes.
        rank: which of them this is.
        seed: that of the run.

    Attributes:
        skipped: for `skipped_epoch`, number of images of this process that an interrupted run has had already.
    """

    def __init__(self, dataset: Dataset[Any], processes: int, rank: int, seed: int) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, seed=seed, drop_last=processes > 1)
        self.skipped_epoch, self.skipped = -1, 0

    def __iter__(self) -> Iterator[Draw]:
        state = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state[0]))
        images = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(images, generator=generator)
        seeds = torch.randint(2**31, (images,), generator=generator)
        own = order[self.rank : self.total_size : self.num_replicas]
        for index in own[self.skipped if self.epoch == self.skipped_epoch else 0 :].tolist():
            yield Draw(index, int(seeds[index]))


class Augmented(Dataset[Any]):
    """Items of a data set by `Draw`; those that have a random ``transform`` are made with the seed of the draw."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset
        self.random = hasattr(dataset, "transform")

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw | int) -> Any:
        if not isinstance(draw, Draw):  # Lightning took another order, as for overfit_batches
            return self.dataset[draw]
        if not self.random:
            return self.dataset[draw.index]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(draw.seed)
            return self.dataset[draw.index]

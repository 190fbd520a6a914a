"""Measures how fast a loader delivers batches on its own, and provides the batches to train on after that."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from app.bench.short_fit import Batch


def loader_rate(loader: DataLoader[Any], batches: int) -> tuple[float, Iterator[Batch]]:
    """Images per second of a loader, epoch after epoch, and the batches that come next.

    Batches that the loader processes have prepared before the clock starts are taken out first.
    """
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in itertools.islice(endless, 1 + loader.num_workers * (loader.prefetch_factor or 0)):
        pass
    start = time.perf_counter()
    images = sum(len(labels) for _, labels in itertools.islice(endless, batches))
    return images / (time.perf_counter() - start), endless


class MeasuredLoader:
    """The training batches of a data module, without end; its loader is timed alone after the first step.

    It takes the place of the data module's own loader: the data are prepared by the fit, and read once.

    Args:
        data: the data module.
        batches: timed batches.

    Attributes:
        rate: images per second of the loader alone.
        loader: the data module's loader.
        first: the first batch.
    """

    WARM_UP = 2
    """Steps that do not count. The first is slow, and what the loader prepared meanwhile would hide how slow it is, so
    the loader is emptied after it. Lightning fetches a batch ahead: the second step begins with the third batch."""

    def __init__(self, data: pl.LightningDataModule, batches: int) -> None:
        self.rate = 0.0
        self.loader: DataLoader[Any]
        self.first: Batch
        self._batches = batches
        self._make_loader = data.train_dataloader
        data.train_dataloader = lambda: self  # type: ignore[method-assign]

    def __iter__(self) -> Iterator[Batch]:
        self.loader = self._make_loader()
        before = itertools.chain.from_iterable(itertools.repeat(self.loader))
        self.first = next(before)
        yield self.first
        yield from itertools.islice(before, self.WARM_UP - 1)
        self.rate, after = loader_rate(self.loader, self._batches)
        yield from after


def bottleneck(network: float, loader: float, workers: int) -> str:
    """A text that compares the images per second of a network that never waits with those of a loader alone."""
    slower, faster = sorted((loader, network))
    if loader == slower:
        name, other = "loader", "network"
    else:
        name, other = "network", "loader"
    return (
        f"network {network:8.1f} images/s, without waiting for the loader\n"
        f"loader  {loader:8.1f} images/s with {workers} workers, measured without the network\n"
        f"the {name} is the bottleneck: the {other} could do {faster / slower:.1f} times as much"
    )

"""A model, data and callbacks for the tests of the monitors, also by class path on the command line."""

from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.linalg import LinAlgError
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from app.layers import build_pooling
from app.models.backbones import Backbone
from app.models.classifier import Classifier

CHANNELS = 6


class Plain(Classifier):
    """One convolution and the pooling, without batch norm, whose statistics two processes would not share."""

    def __init__(self, meta_layer: str = "svd-exact", meta_options: dict | None = None, layers: int = 1):
        super().__init__(num_classes=3, backbone="compact", meta_layer=meta_layer, meta_options=meta_options, dim=None)
        torch.manual_seed(0)
        self.backbone = Backbone({"0": nn.Conv2d(3, CHANNELS, 3), "1": nn.Tanh()}, CHANNELS)
        pooling = [build_pooling(meta_layer, CHANNELS, None, meta_options) for _ in range(layers)]
        self.pooling = pooling[0] if layers == 1 else Twice(*pooling)
        self.classifier = nn.Linear(self.pooling.out_features, 3)


class Twice(nn.Module):
    """Two poolings side by side, the second of a part of the map."""

    def __init__(self, whole, part):
        super().__init__()
        self.whole, self.part, self.out_features = whole, part, whole.out_features
        self.meta_layer, self.pre_svd_layer = whole.meta_layer, None

    def forward(self, features):
        return self.whole(features) + self.part(features[..., :2, :2])


class Fixed(pl.LightningDataModule):
    """Always the same images in the same order."""

    def __init__(self, batch_size: int = 4, images: int = 24):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.images = TensorDataset(torch.randn(images, 3, 8, 8, generator=generator), torch.arange(images) % 3)
        self.batch_size = batch_size

    def train_dataloader(self):
        processes = self.trainer.world_size
        # Lightning's own sampler would shuffle
        options = {"num_replicas": processes, "rank": self.trainer.global_rank, "shuffle": False}
        sampler = DistributedSampler(self.images, **options) if processes > 1 else None
        return DataLoader(self.images, self.batch_size // processes, sampler=sampler)

    def val_dataloader(self):
        return DataLoader(Subset(self.images, range(4)), 4 // self.trainer.world_size)


class Breaker(pl.Callback):
    """Breaks `torch.linalg.eigh` in some steps of one process: see `FAULTS`."""

    def __init__(self, steps: list[int], fault: str = "retried", rank: int = 0, in_validation: bool = False):
        self.steps, self.fault, self.rank, self.in_validation = steps, fault, rank, in_validation
        self.original = torch.linalg.eigh
        torch.set_num_threads(1)  # so that `eigh` gets whole batches

    def _break(self, trainer):
        if trainer.global_step in self.steps and trainer.global_rank == self.rank and not trainer.sanity_checking:
            torch.linalg.eigh = lambda A: FAULTS[self.fault](A, self.original)

    def on_train_batch_start(self, trainer, module, batch, index):
        if not self.in_validation:
            self._break(trainer)

    def on_validation_batch_start(self, trainer, module, batch, index, loader=0):
        if self.in_validation:
            self._break(trainer)

    def on_train_batch_end(self, *arguments):
        torch.linalg.eigh = self.original

    on_validation_batch_end = on_train_batch_end


def retried(A, eigh):
    """Batches and single matrices do not converge; the retry of a matrix does."""
    if A.ndim == 2 or len(A) > 1:
        raise LinAlgError("the algorithm failed to converge")
    return eigh(A)


def iterated(A, eigh):
    """Nothing converges."""
    raise LinAlgError("the algorithm failed to converge")


def wrong(A, eigh):
    """Batches get eigenvectors of other eigenvalues; the retry of a matrix is right."""
    eigenvalues, V = eigh(A)
    return eigenvalues, V.roll(1, -1) if len(A) > 1 else V


FAULTS = {"retried": retried, "iterated": iterated, "wrong": wrong}


class Keeper(pl.Callback):
    """Keeps the parameters of each process."""

    def __init__(self, folder: str):
        self.folder = folder

    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), Path(self.folder, f"rank{trainer.global_rank}.pt"))

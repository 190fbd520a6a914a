"""The loader by itself, and the time that a training step waits for it."""

import time

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from app.bench.loader import MeasuredLoader, bottleneck, loader_rate
from app.bench.short_fit import quiet
from app.bench.step import medians
from app.bench.step_timer import LOADER, PARTS, StepTimer
from app.models.classifier import Classifier


class Slow(Dataset):
    """Eight images, each of which takes a fiftieth of a second."""

    def __init__(self, wait):
        self.wait = wait

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.wait(0.02)
        return torch.zeros(3, 32, 32), index


def advancing(clock):
    def wait(seconds):
        clock.now += seconds

    return wait


def test_loader_rate_is_that_of_the_loader(clock):
    rate, batches = loader_rate(DataLoader(Slow(advancing(clock)), batch_size=2), 6)  # more than an epoch
    assert rate == pytest.approx(1 / 0.02)
    assert next(batches)[1].tolist() == [6, 7]  # the last of the second epoch


def test_loader_rate_of_processes_is_no_faster_than_they_are():
    loader = DataLoader(Slow(time.sleep), batch_size=2, num_workers=2, persistent_workers=True)
    rate, batches = loader_rate(loader, 6)
    # one batch of each process may have been prepared before the clock started; a loaded machine is slower
    assert 0 < rate <= 2 / 0.02 * (6 / (6 - 2))
    assert next(batches)[1].tolist() == [6, 7]  # the last of the third epoch


class Data(pl.LightningDataModule):
    """Two images a batch."""

    def __init__(self, images):
        super().__init__()
        self.images, self.prepared = images, 0

    def setup(self, stage):
        self.prepared += 1

    def train_dataloader(self):
        return DataLoader(ConcatDataset([self.images] * 20), batch_size=2)


def test_a_step_waits_for_its_batch(clock):
    data, timer, model = Data(Slow(advancing(clock))), StepTimer(), Classifier(8, "compact", "gap")
    loader = MeasuredLoader(data, batches=5)
    model.backbone.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 0.3))
    flags = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with quiet(), timer.watching(model, [], torch.device("cpu")):
        trainer = pl.Trainer(accelerator="cpu", max_steps=loader.WARM_UP + 3, profiler=timer, **flags)
        trainer.fit(model, datamodule=data)
    assert data.prepared == 1
    assert loader.rate == pytest.approx(1 / 0.02)
    assert loader.first[1].tolist() == [0, 1]
    seconds = medians(timer.steps[loader.WARM_UP :])
    assert seconds == pytest.approx(dict.fromkeys(PARTS, 0.0) | {LOADER: 0.04, "backbone forward": 0.3})


def test_the_wait_is_a_mean_and_the_parts_are_medians():
    # processes deliver two batches at once, and none before the third step is through
    steps = [dict.fromkeys((LOADER, *PARTS), seconds) for seconds in (0.0, 0.0, 6.0)]
    assert medians(steps) == {LOADER: 2.0, **dict.fromkeys(PARTS, 0.0)}
    with pytest.raises(ValueError, match="no step was measured"):
        medians([])


@pytest.mark.parametrize(("network", "loader", "slower"), [(10, 25, "network"), (25, 10, "loader")])
def test_the_slower_one_is_the_bottleneck(network, loader, slower):
    last = bottleneck(network, loader, 2).splitlines()[-1]
    assert last.startswith(f"the {slower} is the bottleneck: ")
    assert last.endswith(" could do 2.5 times as much")

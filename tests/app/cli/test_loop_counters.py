"""Resumed runs of plain Lightning with and without the repair of its counters: the steps and ends of epochs they make.

Where a test of what Lightning does by itself fails, Lightning is mended, and that part of `LoopCounters` can go.
"""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
from torch.utils.data import DataLoader

from app.cli.lightning_compat import LoopCounters, repair_epoch_counters

pytestmark = pytest.mark.filterwarnings("ignore:.*`val_dataloader`", "ignore:You're resuming", "ignore:Checkpoint dir")

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
STEPS = 4
"""Steps of an epoch."""


class Record(pl.Callback):
    """The steps of a run as pairs (epoch, batch), and the ends of its epochs as ("end", epoch)."""

    def __init__(self):
        self.events = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.events.append((trainer.current_epoch, index))

    def on_train_epoch_end(self, trainer, module):
        self.events.append(("end", trainer.current_epoch))


def fit(folder, *callbacks, ckpt_path=None, **limits):
    record = Record()
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[record, *callbacks, last], **QUIET, **limits)
    data = DataLoader(RandomDataset(32, 2 * STEPS), 2)
    trainer.fit(BoringModel(), data, ckpt_path=ckpt_path, weights_only=True)
    return record.events


def epoch(number, first=0):
    return [*((number, batch) for batch in range(first, STEPS)), ("end", number)]


CASES = {
    # end of epoch 0, saved before it counts as completed
    "end of an epoch": (
        {"max_steps": STEPS, "max_epochs": -1},
        {"max_steps": 2 * STEPS, "max_epochs": -1},
        [("end", 0), *epoch(1)],
        epoch(1),
    ),
    # epoch 1 was ended by max_steps after two of its four steps
    "mid-epoch": (
        {"max_steps": STEPS + 2, "max_epochs": -1},
        {"max_epochs": 3},
        epoch(2),
        [*epoch(1, first=2), *epoch(2)],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_lightning_by_itself(case, tmp_path):
    first, second, wrong, _ = CASES[case]
    fit(tmp_path, **first)
    assert fit(tmp_path, ckpt_path=tmp_path / "last.ckpt", **second) == wrong


@pytest.mark.parametrize("case", CASES)
def test_with_the_repair(case, tmp_path):
    first, second, _, right = CASES[case]
    fit(tmp_path, LoopCounters(), **first)
    assert fit(tmp_path, LoopCounters(), ckpt_path=tmp_path / "last.ckpt", **second) == right


def test_the_repair_of_the_counters_alone_is_not_enough(tmp_path):
    """Without `begin_epoch_anew` the next epoch ends before it begins."""

    class CountersOnly(pl.Callback):
        def on_load_checkpoint(self, trainer, module, checkpoint):
            repair_epoch_counters(checkpoint)

    first, second, _, _ = CASES["end of an epoch"]
    fit(tmp_path, **first)
    assert fit(tmp_path, CountersOnly(), ckpt_path=tmp_path / "last.ckpt", **second)[0] == ("end", 1)


def test_runs_of_whole_epochs_need_no_repair(tmp_path):
    fit(tmp_path, max_epochs=1)
    for name, callbacks in (("without", ()), ("with", (LoopCounters(),))):
        assert fit(tmp_path / name, *callbacks, ckpt_path=tmp_path / "last.ckpt", max_epochs=2) == epoch(1)


def test_a_checkpoint_without_loops_is_left_alone(tmp_path):
    checkpoint = {"state_dict": {"a": torch.zeros(1)}}
    repair_epoch_counters(checkpoint)
    assert list(checkpoint) == ["state_dict"]

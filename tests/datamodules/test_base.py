"""The loaders of the data modules, and how a training is resumed with them."""

import os

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from datamodules import CIFAR10


def test_loaders(small, monkeypatch):
    data = small(num_workers=2)
    data.setup("fit")
    assert data.train_dataloader().persistent_workers
    assert not data.val_dataloader().drop_last
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert data.train_dataloader().pin_memory


@pytest.mark.parametrize("processes", [2, 3])
def test_every_evaluation_image_is_seen_once_over_all_processes(small, processes):
    data = small(batch_size=6)
    data.setup("fit")
    seen = []
    for rank in range(processes):
        data.trainer = type("Trainer", (), {"world_size": processes, "global_rank": rank})()
        loader = data.val_dataloader()
        assert loader.batch_size == 6 // processes
        seen += list(loader.sampler)
    assert sorted(seen) == [0, 1, 2, 3, 4]
    data.trainer.world_size = 4
    with pytest.raises(ValueError, match="batch_size 6 does not divide among 4 processes"):
        data.val_dataloader()
    data.trainer.world_size = 6
    with pytest.raises(ValueError, match="evaluation set has 5 images, fewer than the 6 processes"):
        data.val_dataloader()


class Recorder(pl.LightningModule):
    """Keeps the mean of every training batch, and a number that is drawn with the run's seed."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_index):
        generator = torch.Generator().manual_seed(self.trainer.datamodule.seed)
        self.seen.append((batch[0].mean().item(), batch[1].tolist(), torch.rand((), generator=generator).item()))
        return self.weight.square()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, data, seed, **options):
    pl.seed_everything(seed, verbose=False)
    # Saved after step 5 of 9: mid-epoch, as epochs have 3 steps.
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    trainer = pl.Trainer(
        max_epochs=3, callbacks=[save], logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    model = Recorder()
    trainer.fit(model, datamodule=data, **options)
    return model.seen


@pytest.fixture
def environment(monkeypatch):
    """``seed_everything`` leaves the seed in the environment: other tests shall not see it."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def test_plain_lightning_resumes_with_the_seed_of_the_checkpoint(small, tmp_path, environment):
    whole = fit(tmp_path, small(), seed=1)
    data = small()
    resumed = fit(tmp_path, data, seed=2, ckpt_path=tmp_path / "step=5.ckpt")
    assert len(whole) == 9
    assert resumed == whole[5:]
    assert data.seed == 1
    assert os.environ["PL_GLOBAL_SEED"] == "2"  # the data module has only read it
    # The same object in another training: nothing of the resumed run is left.
    assert fit(tmp_path, data, seed=2) == fit(tmp_path, small(), seed=2) != whole


def test_a_checkpoint_holds_plain_types(small, tmp_path, environment, mini):
    fit(tmp_path, small(), seed=1)
    state = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["CIFAR10"]
    assert len(state.pop("fingerprint")) == 32
    assert state == {
        "seed": 1, "epoch": 1, "batches": 2, "batch_size": 3, "epoch_is_complete": 0, "images": 9,
        "class_names": sorted(mini.classes),
    }  # fmt: skip


def training_list(data):
    data.setup("fit")
    data.train_dataloader()
    return data._training_list


def test_the_training_list_of_image_files_depends_on_their_names(small, tmp_path):
    before = training_list(small())
    assert training_list(small()) == before
    file = next((tmp_path / "train").rglob("*.jpg"))
    file.rename(file.with_name("renamed.jpg"))
    after = training_list(small())
    assert after.images == before.images
    assert after.fingerprint != before.fingerprint


def test_the_training_list_of_images_in_memory_depends_on_their_labels(tmp_path, mini):
    data = CIFAR10(str(mini.cifar(tmp_path)), num_workers=0, batch_size=3, check_counts=False)
    before = training_list(data)
    data.train_set.labels[0] = 2
    data.train_dataloader()
    assert data._training_list.fingerprint != before.fingerprint

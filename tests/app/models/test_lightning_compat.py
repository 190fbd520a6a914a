"""The workarounds, and for each a test that fails once Lightning is mended: the workaround can then go."""

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed
import torch.multiprocessing
from lightning_fabric.utilities.distributed import _sync_ddp_if_available
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch.utils.data import DataLoader, TensorDataset

from app.models.classifier import Classifier
from app.models.lightning_compat import batch_size_to_log


def trainer(tmp_path, **arguments):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    callback = ModelCheckpoint(tmp_path, filename="end", save_on_train_epoch_end=True, enable_version_counter=False)
    return pl.Trainer(default_root_dir=tmp_path, callbacks=[callback], **quiet, **arguments)


def stored_schedule(tmp_path):
    (state,) = torch.load(tmp_path / "end.ckpt", weights_only=True)["lr_schedulers"]
    return state


class Plateau(BoringModel):
    """A plateau schedule as Lightning documents it."""

    def training_step(self, batch, batch_index):
        loss = super().training_step(batch, batch_index)["loss"]
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


def test_lightning_saves_an_epoch_before_its_plateau_schedule_is_stepped(tmp_path):
    trainer(tmp_path, max_epochs=1, limit_train_batches=2, limit_val_batches=0).fit(Plateau())
    assert stored_schedule(tmp_path)["last_epoch"] == 0


def classifier():
    schedule = {"lr_scheduler": lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val/loss", patience=0)}
    return Classifier(6, backbone="compact", dim=8, **schedule)


def images():
    x = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(12) % 6), batch_size=4)


def test_ours_is_stepped_once_an_epoch_before_the_epoch_is_saved(tmp_path):
    run = trainer(tmp_path, max_epochs=2)
    run.fit(classifier(), images(), images())
    assert stored_schedule(tmp_path)["last_epoch"] == 2
    assert run.lr_scheduler_configs[0].scheduler.last_epoch == 2


def test_a_metric_that_is_not_measured(tmp_path):
    with pytest.raises(ValueError, match=r"lr_scheduler.monitor val/loss is not measured; there are train/loss"):
        trainer(tmp_path, max_epochs=1).fit(classifier(), images())


def mean_over_two_processes(rank, rendezvous, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    labels = torch.zeros(2 - rank)
    for name, size in (("integer", len(labels)), ("float", batch_size_to_log(labels))):
        meta = _Metadata("validation_step", "loss", on_epoch=True)
        meta.sync = _Sync(_sync_ddp_if_available, _should=True)
        metric = _ResultMetric(meta, is_tensor=True)
        metric.update(torch.tensor(1.0), size)
        results[f"{name} {rank}"] = metric.compute().item()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_lightning_rounds_the_mean_size_of_batches_down(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(mean_over_two_processes, (tmp_path / "rendezvous", results), nprocs=2)
        assert {results["integer 0"], results["integer 1"]} == {1.5}  # instead of 1, the mean of ones
        assert {results["float 0"], results["float 1"]} == {1.0}

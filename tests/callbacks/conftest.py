import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from app.models.classifier import Classifier


class Recorder(pl.Callback):
    """The state that a treatment left at every step: gradient before and after clipping, weight, learning rates."""

    def __init__(self):
        self.gradients, self.clipped, self.weights, self.rates, self.started_with = [], [], [], [], []

    def weight(self, module):
        layer = module.pre_svd_layer
        parametrized = hasattr(layer, "parametrizations")
        return layer.parametrizations["weight"].original if parametrized else layer.weight

    def on_train_batch_start(self, trainer, module, batch, batch_index):
        self.started_with.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.weights.append(self.weight(module).detach().flatten(1).clone())

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append(self.weight(module).grad.flatten(1).clone())
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, module, *_):
        self.clipped.append(self.weight(module).grad.flatten(1).clone())

    def on_train_end(self, trainer, module):
        self.weights.append(self.weight(module).detach().flatten(1).clone())


class Training:
    """Short training runs of a small network with decorrelated batch norm."""

    Recorder = Recorder

    def __init__(self, folder):
        self.folder = folder

    @staticmethod
    def model(**arguments):
        torch.manual_seed(0)
        sgd = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1)}
        decorrelated = {"num_classes": 3, "backbone": "compact", "meta_layer": "gap", "decorrelation": "svd-exact"}
        return Classifier(**{**decorrelated, "decorrelation_options": {"eps": 1e-2}, **sgd, **arguments})

    @staticmethod
    def data():
        x = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, torch.arange(12) % 3), batch_size=4)

    def trainer(self, *callbacks, **arguments):
        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
        defaults = {"max_epochs": 1, "enable_checkpointing": False, **quiet}
        return pl.Trainer(default_root_dir=self.folder, callbacks=list(callbacks), **{**defaults, **arguments})

    def __call__(self, *callbacks, model=None, ckpt_path=None, **arguments):
        """Train, and return the record and the trainer."""
        record = Recorder()
        trainer = self.trainer(*callbacks, record, **arguments)
        trainer.fit(model or self.model(), self.data(), ckpt_path=ckpt_path)
        return record, trainer

    @staticmethod
    def half_precision(scale):
        """float16 with a loss scale, on the CPU."""
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
        return pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)


@pytest.fixture
def training(tmp_path):
    return Training(tmp_path)

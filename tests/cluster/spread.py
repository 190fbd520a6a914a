"""Several small trainings, one after the other, in as many processes as started it: each leaves a record.

``python -m torch.distributed.run --nproc_per_node 2 tests/cluster/spread.py FOLDER``
"""

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch import nn

from app.backbones import Backbone
from app.layers import treat_weight
from app.processes import SameCheckpoint, leave_process_group
from callbacks import (
    ConditionNumberMonitor,
    HybridProtocol,
    NearestOrthogonalGradient,
    OptimalLearningRate,
    SVDFailureCounter,
)
from tests.callbacks.parts import CHANNELS, Breaker, Fixed, Plain

EPOCHS = 3


class Decorrelated(Plain):
    """Decorrelated batch norm between the convolution and the pooling."""

    def __init__(self, synchronised: bool = True):
        super().__init__(meta_layer="isqrt-cov")
        torch.manual_seed(0)
        layers = {"0": nn.Conv2d(3, CHANNELS, 3), "1": nn.BatchNorm2d(CHANNELS), "2": nn.Tanh()}
        self.backbone = Backbone(layers, CHANNELS)
        self.backbone.decorrelate("svd-exact", {"synchronised": synchronised})


def treated():
    model = Plain("svd-exact")
    treat_weight(model.pre_svd_layer, "orthogonal")
    return model


def monitors():
    # decompositions of both processes fail in step 2, in one process those of the whole batch
    failing = [Breaker(steps=[2], rank=rank) for rank in (0, 1)]
    return [ConditionNumberMonitor(every_n_steps=1), SVDFailureCounter(), *failing]


TRAININGS = {
    "isqrt-cov in the eigenbasis": lambda: (Plain("isqrt-cov", {"route": "eigenbasis"}), monitors()),
    "isqrt-cov by products": lambda: (Plain("isqrt-cov", {"route": "products"}), monitors()),
    "svd-pade": lambda: (Plain("svd-pade"), monitors()),
    "svd-exact": lambda: (Plain("svd-exact"), monitors()),
    "hybrid": lambda: (Plain("isqrt-cov"), [*monitors(), HybridProtocol("svd-pade", switch_epoch=1)]),
    "NOG": lambda: (Plain("svd-exact"), [NearestOrthogonalGradient()]),
    "NOG and OLR": lambda: (treated(), [NearestOrthogonalGradient(), OptimalLearningRate()]),
    "decorrelated": lambda: (Decorrelated(), monitors()),
    "decorrelated, each process by itself": lambda: (Decorrelated(synchronised=False), []),
}


class Record(Logger):
    """All that is logged: (tag, step) -> value."""

    name, version, experiment = "record", 0, None

    def __init__(self):
        super().__init__()
        self.values = {}

    def log_hyperparams(self, *_, **__):
        pass

    def log_metrics(self, metrics, step=None):
        self.values.update({(tag, step): value for tag, value in metrics.items()})


def trainer(devices, callbacks, **options):
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return pl.Trainer(accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto",
                      precision="64-true", max_epochs=EPOCHS, log_every_n_steps=1, num_sanity_val_steps=0,
                      callbacks=callbacks, **quiet, **options)  # fmt: skip


def train(name, devices):
    """What a training logged, and its parameters and buffers."""
    model, callbacks = TRAININGS[name]()
    record = Record()
    trainer(devices, callbacks, logger=record).fit(model, datamodule=Fixed())
    # metrics are sums that each process keeps of its own images
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("metrics.")}
    return {"logged": record.values, "state": state}


def resume_differently(folder, rank):
    """What a process is told whose checkpoint is not that of the others."""
    path = folder / f"rank{rank}.ckpt"
    saving = trainer(2, [], logger=False)
    saving.fit(Plain(), datamodule=Fixed())
    saving.save_checkpoint(folder / "rank0.ckpt")
    try:
        trainer(2, [SameCheckpoint()], logger=False).fit(
            Plain(), datamodule=Fixed(), ckpt_path=path if path.exists() else None
        )
    except ValueError as error:
        return str(error)
    return None


def main(folder):
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    results = {name: train(name, 2) for name in TRAININGS}
    rank = torch.distributed.get_rank()
    results["different checkpoints"] = resume_differently(folder, rank)
    torch.save(results, folder / f"rank{rank}.pt")
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

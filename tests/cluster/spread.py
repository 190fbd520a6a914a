"""Several small trainings, one after the other, in as many processes as started it: each leaves a record.

``python tests/cluster/spread.py FOLDER``
"""

import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers.logger import Logger
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.utils.data import Subset

from app.cli.lightning_compat import leave_process_group
from app.layers import treat_weight
from app.models.backbones import Backbone
from app.models.decorrelation import decorrelate
from callbacks import (
    ConditionNumberMonitor,
    GradientSmoothness,
    HybridProtocol,
    NearestOrthogonalGradient,
    OptimalLearningRate,
    OrthogonalLoss,
    SameCheckpoint,
    SVDFailureCounter,
)
from datamodules.base import ImageDataModule
from tests.callbacks.parts import CHANNELS, Breaker, Fixed, Plain

BATCHES, BATCH = 6, 4
EPOCHS = 3


class Uneven(ImageDataModule):
    """Training as every data module has it; evaluation on images that do not divide among the processes."""

    def __init__(self, folder=None):
        super().__init__(BATCH, num_workers=0, predict_folder=folder)
        images = Fixed(images=BATCHES * BATCH + 9).images
        self.train_set = Subset(images, range(BATCHES * BATCH))
        self.val_set = self.test_set = Subset(images, range(BATCHES * BATCH, len(images)))
        self.class_names = ["a", "b", "c"]

    def evaluate_transform(self, image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).double() / 255


class Decorrelated(Plain):
    """Decorrelated batch norm between the convolution and the pooling."""

    def __init__(self, synchronised: bool = True):
        super().__init__(meta_layer="isqrt-cov")
        torch.manual_seed(0)
        layers = {"0": nn.Conv2d(3, CHANNELS, 3), "1": nn.BatchNorm2d(CHANNELS), "2": nn.Tanh()}
        self.backbone = Backbone(layers, CHANNELS)
        decorrelate(self.backbone, "svd-exact", {"synchronised": synchronised})


def treated(treatment):
    model = Plain("svd-exact")
    treat_weight(model.pre_svd_layer, treatment)
    return model


def monitors(fault="retried"):
    # the same images fail on any number of processes: all of a step of training, and of the first validation
    failing = [Breaker([2], fault, rank) for rank in range(4)]
    failing += [Breaker([BATCHES], fault, rank, in_validation=True) for rank in range(4)]
    return [ConditionNumberMonitor(every_n_steps=1), SVDFailureCounter(), *failing]


NOG, OLR = NearestOrthogonalGradient, OptimalLearningRate
SHORT = {"max_epochs": 1}
OTHERS = {"mpn-cov": {}, "ns-minimax": {}, "svd-trunc": {}, "svd-topn": {"topn": 4}, "svd-newton": {}, "svd-taylor": {}}

TRAININGS = {
    "isqrt-cov in the eigenbasis": (lambda: (Plain("isqrt-cov", {"route": "eigenbasis"}), monitors()), {}),
    "isqrt-cov by products": (lambda: (Plain("isqrt-cov", {"route": "products"}), monitors()), {}),
    "svd-pade": (lambda: (Plain("svd-pade"), monitors()), {}),
    "svd-exact": (lambda: (Plain("svd-exact"), monitors()), {}),
    **{name: (lambda name=name, o=o: (Plain(name, o), monitors()), SHORT) for name, o in OTHERS.items()},
    "nothing converges": (lambda: (Plain("svd-exact"), monitors("iterated")), SHORT),
    "accumulated and clipped": (
        lambda: (Plain("svd-exact"), monitors()),
        {**SHORT, "accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    ),
    "hybrid": (lambda: (Plain("isqrt-cov"), [*monitors(), HybridProtocol("svd-pade", switch_epoch=1)]), {}),
    "NOG": (lambda: (Plain("svd-exact"), [NOG()]), {}),
    "orthogonal weight, OLR": (lambda: (treated("orthogonal"), [OLR(), GradientSmoothness(1, [1.0])]), SHORT),
    "orthogonal loss, NOG": (lambda: (Plain("svd-exact"), [OrthogonalLoss(), NOG()]), SHORT),
    "orthogonal weight, NOG, OLR": (lambda: (treated("orthogonal"), [NOG(), OLR()]), {}),
    "spectral normalisation": (lambda: (treated("spectral"), []), SHORT),
    "decorrelated": (lambda: (Decorrelated(), monitors()), {}),
    "decorrelated, nothing converges": (lambda: (Decorrelated(), monitors("iterated")), SHORT),
    "decorrelated, each process by itself": (lambda: (Decorrelated(synchronised=False), []), {}),
}
"""Model and callbacks, and options of the trainer."""

IN_FOUR = ("nothing converges", "orthogonal weight, NOG, OLR", "decorrelated, nothing converges")


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
                      precision="64-true", log_every_n_steps=1, num_sanity_val_steps=0,
                      callbacks=callbacks, **quiet, **{"max_epochs": EPOCHS, **options})  # fmt: skip


def train(name, devices, shift=0.0):
    """Train, and return the logged values, the parameters and buffers, and the counts.

    `shift`: by how much, relatively, each weight is moved before, up or down.
    """
    make, options = TRAININGS[name]
    model, callbacks = make()
    if shift:
        model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + shift * torch.randn_like(parameter).sign())
    record = Record()
    trainer(devices, callbacks, logger=record, **options).fit(model, datamodule=Uneven())
    # metrics are sums that each process keeps of its own images
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("metrics.")}
    counted = [callback.state_dict() for callback in callbacks if isinstance(callback, SVDFailureCounter)]
    return {"logged": record.values, "state": state, "counted": counted}


def evaluate(devices, folder):
    """Results of a test, and the probabilities of each image that this process predicted."""
    model, data = Decorrelated(), Uneven(str(folder))
    one = trainer(devices, [], logger=False)
    (tested,) = one.test(model, datamodule=data, verbose=False)
    batches = one.predict(model, datamodule=data)
    predicted = []
    for batch in batches:
        predicted += zip(batch["files"], batch["probabilities"].tolist(), strict=True)
    return {"tested": tested, "predicted": predicted}


def draw_images(folder):
    """Five images, which do not divide among two processes."""
    for number in range(5):
        Image.new("RGB", (8, 8), (40 * number, 99, 255 - 40 * number)).save(folder / f"{number}.png")


def resume_differently(folder, rank):
    """The error of a process whose checkpoint is not that of the others."""
    path = folder / f"rank{rank}.ckpt"
    saving = trainer(2, [], logger=False, max_epochs=1)
    saving.fit(Plain(), datamodule=Fixed())
    saving.save_checkpoint(folder / "rank0.ckpt")
    try:
        trainer(2, [SameCheckpoint()], logger=False).fit(
            Plain(), datamodule=Fixed(), ckpt_path=path if path.exists() else None
        )
    except ValueError as error:
        return str(error)
    return None


def work(folder, processes):
    """The work of each process."""
    results = {name: train(name, processes) for name in (TRAININGS if processes == 2 else IN_FOUR)}
    rank = torch.distributed.get_rank()
    if processes == 2:
        results["evaluated"] = evaluate(processes, folder)
        results["different checkpoints"] = resume_differently(folder, rank)
    torch.save(results, folder / f"{processes}_rank{rank}.pt")
    leave_process_group()


def main(folder):
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    draw_images(folder)
    for processes in (2, 4):
        # Like torchrun, without the imports of each process.
        options = {"run_id": "spread", "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork"}
        config = LaunchConfig(1, 1, processes, **options)
        elastic_launch(config, work)(folder, processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

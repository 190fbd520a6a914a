"""The callbacks as `covpool.callbacks`, beside `covpool.layers` and without `app`, as in the installed package."""

import os
import subprocess
import sys

from tests.conftest import ROOT

USE = """
import sys
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import covpool.callbacks
from covpool.callbacks import ConditionNumberMonitor, NearestOrthogonalGradient, NonFinitePolicy, SVDFailureCounter
from covpool.layers import GlobalCovariancePooling


class Network(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.pooling = GlobalCovariancePooling(4, 3, "svd-pade")
        self.pre_svd_layer = self.pooling.pre_svd_layer
        self.head = nn.Linear(self.pooling.out_features, 2)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.head(self.pooling(batch[0])), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing"), False)
callbacks = [ConditionNumberMonitor(1), SVDFailureCounter(), NonFinitePolicy(), NearestOrthogonalGradient()]
trainer = pl.Trainer(accelerator="cpu", max_epochs=1, log_every_n_steps=1, callbacks=callbacks, **quiet)
trainer.fit(Network(), DataLoader(TensorDataset(torch.randn(8, 4, 5, 5), torch.arange(8) % 2), 4))
print(trainer.callback_metrics["covariance/rank_epoch"].item(), covpool.callbacks._library.__package__)
assert "app" not in sys.modules and "callbacks" not in sys.modules
"""


def test_beside_the_layers_of_the_package(tmp_path):
    package = tmp_path / "covpool"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, folder in (("spectral", "app/spectral"), ("layers", "app/layers"), ("callbacks", "callbacks")):
        (package / name).symlink_to(ROOT / folder)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", USE]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "3.0 covpool.callbacks"

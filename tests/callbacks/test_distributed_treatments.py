import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

RUN = """
import sys
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from app.layers import DecorrelatedBatchNorm2d, treat_weight
from callbacks import NearestOrthogonalGradient, OptimalLearningRate, OrthogonalLoss


class Network(pl.LightningModule):
    def __init__(self, treatment):
        super().__init__()
        torch.manual_seed(0)
        convolution, norm = nn.Conv2d(3, 6, 3, bias=False), DecorrelatedBatchNorm2d(6, synchronised=True)
        self.layers = nn.Sequential(convolution, norm, nn.Tanh(), nn.Flatten(), nn.Linear(6 * 36, 3))
        self.pre_svd_layer = convolution
        if treatment:
            treat_weight(convolution, treatment)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self):
        weight = self.pre_svd_layer.parametrizations.weight.original if TREATMENT else self.pre_svd_layer.weight
        rest = [p for p in self.parameters() if p is not weight]
        return torch.optim.SGD([{"params": rest}, {"params": [weight]}], lr=0.5, momentum=0.9, weight_decay=1e-3)


    def train_dataloader(self):
        # every step sees the same four images, whoever computes them
        images = torch.randn(16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        share = TensorDataset(images[rank::processes], (torch.arange(16) % 3)[rank::processes])
        return DataLoader(share, batch_size=4 // processes)


def run(devices):
    model = Network(TREATMENT).double()
    treatments = [NearestOrthogonalGradient(), OptimalLearningRate()]
    treatments = treatments if TREATMENT else [OrthogonalLoss(), *treatments]
    quiet = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "logger", "enable_checkpointing"), False
    )
    strategy = "ddp" if devices > 1 else "auto"
    trainer = pl.Trainer(
        accelerator="cpu", devices=devices, strategy=strategy, max_epochs=1, callbacks=treatments,
        gradient_clip_val=2.0, use_distributed_sampler=False, **quiet
    )
    trainer.fit(model)
    return model, trainer.callback_metrics
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    code = f"TREATMENT = 'orthogonal'\n{RUN}\n"
    end = (
        "model, metrics = run(2)\n"
        "torch.save([model.state_dict(), metrics['olr/learning_rate']], sys.argv[1] + f'/{model.global_rank}.pt')\n"
        "torch.distributed.destroy_process_group()\n"
    )
    (tmp_path / "script.py").write_text(code + end)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    scope: dict = {}
    exec(code, scope)
    model, metrics = scope["run"](1)
    rates = []
    for rank in range(2):
        state, rate = torch.load(tmp_path / f"{rank}.pt")
        rates.append(rate)
        # four steps of the same sums in another order
        torch.testing.assert_close(state, model.state_dict(), rtol=1e-8, atol=1e-8)
    assert rates[0] == rates[1] == pytest.approx(metrics["olr/learning_rate"].item())


def test_all_gradient_treatments_in_one_process():
    scope: dict = {}
    exec(f"TREATMENT = None\n{RUN}", scope)
    _, metrics = scope["run"](1)
    assert {"orthogonal_loss/value", "nog/left_alone", "olr/learning_rate"} <= metrics.keys()

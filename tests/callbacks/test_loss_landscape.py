"""The landscape callback: the layer it moves, the papers' settings, and several processes."""

import re

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from app.models.backbones import BACKBONES
from app.models.classifier import Classifier
from callbacks import GradientSmoothness, LossLandscape
from tests.callbacks.test_gradient_smoothness import LANDSCAPE, QUIET, Polynomial, scalars

FIRST = {"alexnet": "features.0", "alexnet_bn": "features.0", "mobilenet_v2": "features.0.0", "compact": "stage1.0"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone(backbone, tmp_path):
    torch.manual_seed(0)
    side = 80 if backbone.startswith("alexnet") else 32
    model = Classifier(2, backbone, "svd-exact", dim=None if backbone.startswith("alexnet") else 8)
    data = DataLoader(TensorDataset(torch.randn(2, 3, side, side), torch.tensor([0, 1])), batch_size=2)
    monitors = [GradientSmoothness(1, [1.0]), landscape := LossLandscape(points=2)]
    trainer = pl.Trainer(max_steps=1, logger=False, callbacks=monitors, **QUIET)
    trainer.fit(model, data)
    found = trainer.callback_metrics
    assert landscape.layer == f"backbone.{FIRST.get(backbone, 'conv1')}"
    assert all(found[tag].isfinite() for tag in LANDSCAPE)
    assert found["landscape/gradient_max"] > 0
    assert found["smoothness/beta"] > 0


@pytest.mark.parametrize(
    ("backbone", "given", "period", "smallest", "largest"),
    [
        ("mobilenet_v2", {}, 1000, 0.045, 1.5),
        ("resnet18", {}, 500, 0.1, 75),
        ("compact", {}, 500, 0.1, 75),
        ("mobilenet_v2", {"every_n_steps": 7, "largest": 3}, 7, 0.045, 3),
    ],
)
def test_settings_of_the_paper(backbone, given, period, smallest, largest):
    landscape = LossLandscape(**given)
    landscape.setup(None, Classifier(2, backbone, dim=8), "fit")
    assert landscape.period == period
    assert (landscape.step_lengths[0], landscape.step_lengths[-1]) == pytest.approx((smallest, largest))
    assert len(landscape.step_lengths) == 50


@pytest.mark.slow
def test_two_processes_find_what_one_finds(main, train, demo, tmp_path):
    """AlexNet has no batch statistics, and overfit_batches the same images in the same order."""
    (tmp_path / "monitors.yaml").write_text(
        "trainer: {callbacks: [{class_path: GradientSmoothness, init_args: {step_lengths: [1.0, 100.0]}},"
        " {class_path: LossLandscape, init_args: {points: 3}}]}"
    )
    model = ("--model.backbone", "alexnet", "--model.meta_layer", "isqrt-cov", "--model.dim", "null")
    short = ("--trainer.max_steps", 1, "--trainer.overfit_batches", 1, "--trainer.limit_val_batches", 0)
    data = ("--data.patch_size", 80, "--data.batch_size", 16, "--trainer.enable_progress_bar", "false")
    command = ("fit", "--config", demo, "--config", tmp_path / "monitors.yaml", *model, *data, *short)
    two = ("--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp")
    assert main(*command) == 0
    result = train(*command, *two, "--trainer.logger.name", "two", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    one, both = scalars(tmp_path / "runs/demo/version_0"), scalars(tmp_path / "runs/two/version_0")
    tags = [tag for tag in one if re.match("smoothness|landscape", tag)]
    assert sorted(tags) == sorted(["smoothness/beta", *LANDSCAPE])
    for tag in tags:
        assert both[tag] == [(0, pytest.approx(one[tag][0][1], rel=1e-3))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 0}, "points must be at least 1, got 0"),
        ({"smallest": 2, "largest": 1}, "smallest 2 lies above largest 1"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"smallest": -1}, "step lengths must be positive"),
    ],
)
def test_bad_numbers(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossLandscape(**arguments)


def test_models_it_does_not_fit():
    with pytest.raises(ValueError, match="LossLandscape needs a model whose `backbone` holds a Conv2d"):
        LossLandscape().setup(None, pl.LightningModule(), "fit")
    model = Polynomial(2, [1.0])
    model.loss = None
    with pytest.raises(ValueError, match=r"LossLandscape: Polynomial has no method loss\(batch\)"):
        LossLandscape().setup(None, model, "fit")

"""Backbones, meta-layers, functions and normalisations of classes outside the repository, through the command line."""

import re
import sys

import pytest
import torch
import yaml

from app.models.classifier import Classifier

MODULE = '''
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.spectral import Method, ScalarFunction


class Narrow(nn.Module):
    """A backbone whose number of channels is found by a forward pass."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Conv2d(width, 2 * width, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images))


class Logits(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 64 * 64, 5))


@dataclass(frozen=True)
class Damped(Method):
    """A gradient rule with an option."""

    limit: float = 2.0

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return f.divided_difference(a, b).clamp(max=self.limit)


class Trace(nn.Module):
    """A normalisation that is no function of the eigenvalues, with a parameter."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, covariance: Tensor) -> Tensor:
        return self.scale * covariance / covariance.diagonal(dim1=1, dim2=2).sum(1).view(-1, 1, 1)


class Unit(nn.Module):
    """Features of length one at each position."""

    def forward(self, X: Tensor) -> Tensor:
        return nn.functional.normalize(X, dim=1)


@dataclass(frozen=True)
class Cube(ScalarFunction):
    def value(self, a: Tensor) -> Tensor:
        return a**3

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return a * a + a * b + b * b
'''

SHORT = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1)
CHECKPOINT = "runs/demo/version_0/checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_module", None)


@pytest.fixture
def config(demo, tmp_path):
    """The demonstration with other arguments of the model."""

    def write(**arguments):
        content = yaml.safe_load(demo.read_text())
        content["model"]["init_args"] |= arguments
        content["trainer"]["enable_progress_bar"] = False
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "own.yaml"

    return write


def theirs(name, **arguments):
    import importlib

    return getattr(importlib.import_module("their_module"), name)(**arguments)


def entry(name, **arguments):
    return {"class_path": f"their_module.{name}", "init_args": arguments}


def small(**arguments):
    return Classifier(**{"num_classes": 6, "backbone": "compact", "dim": 8, **arguments})


OBJECTS = {
    "backbone": entry("Narrow", width=6),
    "meta_layer": entry("Damped", limit=3.0),
    "function": entry("Cube"),
    "feature_normalisation": entry("Unit"),
}


def test_all_doors_from_yaml_train_resume_and_test(main, config):
    path = config(**OBJECTS, dim=8)
    assert main("fit", "--config", path, *SHORT) == 0
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    stored = checkpoint["hyper_parameters"]
    for name, description in OBJECTS.items():
        assert stored[name]["class_path"] == description["class_path"]
        assert stored[name].get("init_args", {}) == description["init_args"]
    assert stored["dim"] == 8
    assert "_instantiator" not in stored  # nothing is made of the classes that a file names
    assert main("test", "--config", path, "--ckpt_path", CHECKPOINT, *SHORT) == 0
    assert main("fit", "--config", path, "--ckpt_path", CHECKPOINT, *SHORT[2:], "--trainer.max_epochs", 2) == 0


def test_doors_from_the_command_line(main, demo):
    arguments = ("--model.meta_layer", "their_module.Damped", "--model.meta_layer.limit", 5, "--model.dim", 8)
    backbone = ("--model.backbone.class_path", "their_module.Narrow", "--model.backbone.width", 4)
    assert main("fit", "--config", demo, *arguments, *backbone, *SHORT) == 0
    stored = torch.load(CHECKPOINT, weights_only=True)["hyper_parameters"]
    assert stored["meta_layer"] == entry("Damped", limit=5.0)
    assert stored["backbone"] == entry("Narrow", width=4)


def test_a_normalisation_with_parameters_is_trained(main, config):
    path = config(meta_layer=entry("Trace", scale=2.0))
    assert main("fit", "--config", path, *SHORT) == 0
    state = torch.load(CHECKPOINT, weights_only=True)["state_dict"]
    (scale,) = [value for name, value in state.items() if name.endswith("scale")]
    assert scale != 2
    assert main("test", "--config", path, "--ckpt_path", CHECKPOINT, *SHORT) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backbone": entry("Logits")},
            r"backbone Logits must return a feature map .* returns \(1, 5\)",
        ),
        ({"backbone": entry("Narrow", widths=3)}, "'widths' is not accepted"),
        ({"backbone": entry("Narrow"), "stem": "cifar"}, "options of the backbones with a name: Narrow has none"),
        (
            {"backbone": "their_module.Narrow"},
            "unknown backbone 'their_module.Narrow'.* give the class_path",
        ),
        ({"meta_layer": entry("Damped"), "meta_options": {"limit": 3}}, r"Damped\(limit=2.0\).* limit"),
        ({"meta_layer": "gap", "function": entry("Cube")}, "leave out function"),
    ],
)
def test_bad_objects_are_one_line(main, config, capsys, arguments, message):
    assert main("fit", "--config", config(**arguments), *SHORT) in (1, 2)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line


def test_objects_in_python_are_described_in_checkpoints_and_given_again(tmp_path):
    import pytorch_lightning as pl

    model = small(backbone=theirs("Narrow"), meta_layer=theirs("Damped", limit=4.0), function=theirs("Cube"))
    assert model.pooling.channels[0] == 16
    run = pl.Trainer(default_root_dir=tmp_path, logger=False, max_epochs=0, enable_model_summary=False)
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert stored["meta_layer"] == entry("Damped", limit=4.0)
    assert stored["backbone"] == {"class_path": "their_module.Narrow"}
    again = {"meta_layer": theirs("Damped", limit=4.0), "function": theirs("Cube")}
    with pytest.raises(ValueError, match=r"backbone is an object of the class their_module.Narrow.* backbone=\.\.\.\)"):
        Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, **again)
    loaded = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, backbone=theirs("Narrow"), **again)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images), model.eval()(images))


def test_use_meta_layer_takes_objects():
    model = small()
    model.use_meta_layer(theirs("Damped", limit=4.0))
    assert model.hparams["meta_layer"] == entry("Damped", limit=4.0)
    model.use_meta_layer("svd-pade", {"pade_degree": 50})
    assert (model.hparams["meta_layer"], model.hparams["meta_options"]) == ("svd-pade", {"pade_degree": 50})


def test_treatments_of_a_backbone_of_their_own():
    model = small(backbone=theirs("Narrow"), dim=None, weight_treatment="orthogonal")
    assert model.pre_svd_layer is model.backbone.last
    assert small(backbone=theirs("Narrow")).pre_svd_layer is not model.backbone.last
    decorrelated = small(backbone=theirs("Narrow"), meta_layer="gap", decorrelation=theirs("Damped"))
    assert decorrelated.pre_svd_layer is decorrelated.backbone.first[0]
    assert decorrelated.hparams["decorrelation"] == entry("Damped", limit=2.0)
    with pytest.raises(ValueError, match="this backbone has none"):
        small(backbone=torch.nn.Conv2d(3, 8, 3), decorrelation="svd-exact")
    with pytest.raises(ValueError, match="weight_treatment spectral has no layer to act on"):
        small(backbone=torch.nn.AvgPool2d(2), dim=None, weight_treatment="spectral")


def test_a_function_is_not_a_backbone():
    with pytest.raises(ValueError, match=r"backbone must be a name or a torch.nn.Module, got a builtin"):
        small(backbone=torch.relu)

"""A run from before the files moved: its checkpoint and its configuration name the classifier by the old module.

It was a run of configs/demo.yaml with ``--model.dim 8``, `HybridProtocol` and the monitors, of 2 epochs of 3 steps.
"""

import shutil
from pathlib import Path

import pytest
import torch

from app.models.classifier import Classifier
from tests.app.cli.parts import meta_layer
from tests.conftest import ROOT

RUN = ROOT / "tests/app/cli/run_before_the_move"
LIMITS = (
    "--trainer.limit_train_batches",
    3,
    "--trainer.limit_val_batches",
    2,
    "--trainer.enable_progress_bar",
    "false",
)


@pytest.fixture
def old(tmp_path):
    """Copies of the two files, as runs may write beside them."""
    for name in ("last.ckpt", "config.yaml"):
        shutil.copy(RUN / name, tmp_path / name)
    return tmp_path / "last.ckpt"


def test_the_files_are_from_before_the_move():
    checkpoint = torch.load(RUN / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["_class_path"] == "app.classifier.Classifier"
    assert "class_path: app.classifier.Classifier" in (RUN / "config.yaml").read_text()


def resumed(first):
    checkpoint = torch.load("runs/demo/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["epoch"] == first["epoch"] + 1
    assert checkpoint["global_step"] == first["global_step"] + 3
    assert checkpoint["hyper_parameters"]["meta_layer"] == "svd-pade"
    assert checkpoint["hyper_parameters"]["dim"] == 8
    return True


@pytest.mark.parametrize("configuration", ["the demo's", "the old one"])
def test_the_run_is_resumed(main, demo, old, configuration):
    file = demo if configuration == "the demo's" else "config.yaml"
    assert main("fit", "--config", file, "--ckpt_path", old, "--trainer.max_epochs", 3, *LIMITS) == 0
    assert resumed(torch.load(RUN / "last.ckpt", weights_only=True))


@pytest.mark.parametrize("configuration", ["the demo's", "the old one"])
def test_the_network_is_tested(main, demo, old, configuration):
    file = demo if configuration == "the demo's" else "config.yaml"
    assert main("test", "--config", file, "--ckpt_path", old, "--trainer.limit_test_batches", 1) == 0
    assert meta_layer("runs/demo/version_0/config_test.yaml") == "svd-pade"


def test_the_old_configuration_starts_a_new_run(main, old):
    assert main("fit", "--config", "config.yaml", "--trainer.max_epochs", 2, *LIMITS) == 0
    assert "class_path: app.models.classifier.Classifier" in Path("runs/demo/version_0/config.yaml").read_text()


def test_the_network_is_fine_tuned(main, demo, old, capsys):
    start = ("fit", "--config", demo, "--model.init_from", old, "--trainer.fast_dev_run", "true")
    assert main(*start) == 0
    assert "left as initialised" not in capsys.readouterr().err


def test_the_checkpoint_loads_from_python():
    model = Classifier.load_from_checkpoint(RUN / "last.ckpt", map_location="cpu")
    stored = torch.load(RUN / "last.ckpt", weights_only=True)["state_dict"]
    assert (model.num_classes, model.hparams["meta_layer"]) == (6, "svd-pade")
    assert all(torch.equal(value, stored[name]) for name, value in model.state_dict().items())

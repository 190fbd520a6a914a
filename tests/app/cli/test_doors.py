"""Models and data modules of another project run through ``train.py``, from a module in the current folder too."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.app.cli.parts import only_error
from tests.conftest import ROOT

QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", 1)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a user's module in the current folder."""
    shutil.copy(ROOT / "tests/app/cli/foreign.py", tmp_path / "users_module.py")
    yield "users_module"
    sys.modules.pop("users_module", None)


@pytest.mark.parametrize("model", ["Regression", "SavedRegression"])
def test_a_foreign_model_and_data_module_in_every_subcommand(main, own, capsys, recwarn, model):
    both = ("--model", f"{own}.{model}", "--data", f"{own}.Points", *QUIET)
    assert main("fit", *both, "--trainer.max_epochs", 2) == 0
    assert "2 epochs done; checkpoint runs/run/version_0/checkpoints/best.ckpt" in capsys.readouterr().out
    warned = [str(w.message) for w in recwarn if "logs no val/top1: best.ckpt is the most recent" in str(w.message)]
    assert len(warned) == 1
    checkpoints = Path("runs/run/version_0/checkpoints")
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(checkpoints / "best.ckpt", weights_only=True)["epoch"] == 1

    assert main("fit", *both, "--trainer.max_epochs", 3, "--ckpt_path", "last") == 0
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == 2
    for subcommand in ("validate", "test", "predict"):
        assert main(subcommand, *both, "--ckpt_path", "best") == 0


def test_the_metric_of_a_foreign_model_can_be_chosen(main, own, capsys):
    metric = ("--checkpoint.monitor", "val_loss", "--checkpoint.mode", "min")
    assert main("fit", "--model", f"{own}.Regression", "--data", f"{own}.Points", *QUIET, *metric,
                "--trainer.max_epochs", 2) == 0  # fmt: skip
    assert "val_loss 0." in capsys.readouterr().out.splitlines()[-1]


def test_a_metric_that_was_chosen_must_exist(main, own, capsys):
    metric = ("--checkpoint.monitor", "nope", "--checkpoint.mode", "max")
    assert main("fit", "--model", f"{own}.Regression", "--data", f"{own}.Points", *QUIET, *metric) == 1
    assert "could not find the monitored key" in only_error(capsys)


def test_hyper_parameters_of_a_foreign_model_are_merged_but_never_made_objects(main, own, capsys, tmp_path):
    both = ("--model", f"{own}.SavedRegression", "--data", f"{own}.Points", *QUIET)
    assert main("fit", *both, "--model.scale", 2, "--trainer.max_epochs", 1) == 0
    assert main("test", *both, "--ckpt_path", "last") == 0
    config = yaml.safe_load(Path("runs/run/version_0/config_test.yaml").read_text())
    assert config["model"]["init_args"]["scale"] == 2
    checkpoint = torch.load("runs/run/version_0/checkpoints/last.ckpt", weights_only=True)
    command = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "executed")]}}
    checkpoint["hyper_parameters"]["optimizer"] = command
    torch.save(checkpoint, "hostile.ckpt")
    capsys.readouterr()
    assert main("test", *both, "--ckpt_path", "hostile.ckpt") == 1
    assert "give --model.optimizer" in only_error(capsys)
    assert not (tmp_path / "executed").exists()


def test_our_model_with_a_foreign_data_module(main, own):
    model = ("--model", "Classifier", "--model.num_classes", 6, "--model.backbone", "compact", "--model.dim", 4)
    both = (*model, "--data", f"{own}.Pictures", *QUIET)
    assert main("fit", *both, "--trainer.max_epochs", 1) == 0
    assert main("test", *both, "--ckpt_path", "best") == 0


def test_a_foreign_model_with_our_data_module(main, own, demo):
    model = ("--config", demo, "--model", f"{own}.Brightness", *QUIET)
    assert main("fit", *model, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2) == 0
    assert main("test", *model, "--ckpt_path", "best", "--trainer.limit_test_batches", 1) == 0


def test_an_error_in_a_foreign_model_names_its_line(main, own, demo, capsys):
    assert main("fit", "--config", demo, "--model", f"{own}.Regression", *QUIET) == 1
    lines = Path("users_module.py").read_text().splitlines()
    line = 1 + lines.index("        loss = (self.linear(batch[0]) - batch[1]).square().mean()")
    assert f"RuntimeError at users_module.py:{line}: mat1 and mat2 shapes" in only_error(capsys)


def test_an_imported_module_is_known_by_short_names(main, own):
    # names that no other test has defined: a short name must be unique among all classes of the process
    path = Path(f"{own}.py")
    path.write_text(path.read_text().replace("Regression", "ImportedRegression").replace("Points", "ImportedPoints"))
    both = ("--model", "ImportedRegression", "--data", "ImportedPoints", *QUIET)
    assert main("fit", "--import", own, *both, "--trainer.max_epochs", 1) == 0
    assert main("test", *both, "--ckpt_path", "last", "--import", own) == 0


def test_a_module_that_cannot_be_imported_is_one_line(main, capsys):
    assert main("fit", "--import", "no_such_module") == 1
    assert "--import no_such_module failed: ModuleNotFoundError" in only_error(capsys)

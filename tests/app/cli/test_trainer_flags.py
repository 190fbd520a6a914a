"""Flags of the trainer, and tools of Lightning, that contradict what the command line always adds."""

import itertools
from pathlib import Path

import pytest
import torch

from tests.app.cli.parts import only_error

FLAGS = ("enable_checkpointing", "enable_progress_bar", "logger", "enable_model_summary")
LIMITS = ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1, "--trainer.max_epochs", 1)


def switched_off(combination):
    arguments = []
    for flag in combination:
        arguments += [f"--trainer.{flag}", "false"]
    return arguments


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(FLAGS) + 1))
def test_whatever_is_switched_off(main, demo, capsys, number):
    for index, combination in enumerate(itertools.combinations(FLAGS, number)):
        folder = ("--trainer.default_root_dir", f"root{index}", "--trainer.logger.name", "demo")
        if "logger" in combination:
            folder = folder[:2]
        assert main("fit", "--config", demo, *folder, *LIMITS, *switched_off(combination)) == 0, combination
        last_line = capsys.readouterr().out.strip().splitlines()[-1]
        assert last_line.startswith("validation top-1 ")
        assert ("checkpoint " in last_line) == ("enable_checkpointing" not in combination)
        assert ("log " in last_line) == ("logger" not in combination)


@pytest.mark.parametrize("flag", [("--trainer.barebones", "true"), ("--trainer.fast_dev_run", "true")])
def test_runs_that_leave_nothing(main, demo, flag):
    for _ in range(2):
        assert main("fit", "--config", demo, *LIMITS, *flag) == 0
    assert [path.name for path in Path().rglob("*") if path.is_file()] == []


def test_the_mode_follows_the_metric(main, demo, capsys):
    assert main("fit", "--config", demo, *LIMITS, "--checkpoint.monitor", "val/loss") == 0
    assert "val/loss " in capsys.readouterr().out.splitlines()[-1]
    states = torch.load("runs/demo/version_0/checkpoints/last.ckpt", weights_only=True)["callbacks"]
    assert any("'monitor': 'val/loss', 'mode': 'min'" in key for key in states)
    assert main("fit", "--config", demo, *LIMITS, "--checkpoint.monitor", "svd/failures") == 1
    assert "say which values are better, --checkpoint.mode min or max" in only_error(capsys)


def test_the_best_top1_beside_a_second_checkpoint_callback(main, demo, capsys):
    second = ("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss")
    assert main("fit", "--config", demo, *LIMITS, *second) == 0
    words = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert words[:2] == ["validation", "top-1"]
    assert words[4] == f"{words[2]});"


@pytest.mark.slow
def test_the_batch_size_finder(main, demo):
    finder = ("--trainer.callbacks+", "BatchSizeFinder", "--trainer.callbacks.max_trials", 2)
    for epochs, resume in ((1, ()), (2, ("--ckpt_path", "last"))):
        limits = (*LIMITS, "--trainer.max_epochs", epochs)
        assert main("fit", "--config", demo, "--data.batch_size", 2, *limits, *finder, *resume) == 0
    assert list(Path().glob(".scale*")) == []
    assert torch.load("runs/demo/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_the_learning_rate_finder(main, demo, capsys):
    finder = ("--trainer.callbacks+", "LearningRateFinder", "--trainer.callbacks.num_training_steps", 3)
    assert main("fit", "--config", demo, *LIMITS, *finder) == 1
    assert "LearningRateFinder cannot set the learning rate of this model, which is an option" in only_error(capsys)
    assert main("fit", "--config", demo, *LIMITS, *finder, "--trainer.callbacks.update_attr", "false") == 0


def test_a_final_epoch_that_is_not_saved_is_not_below_the_best(main, demo, capsys):
    rarely = ("--trainer.max_epochs", 3, "--checkpoint.every_n_epochs", 2)
    assert main("fit", "--config", demo, *LIMITS, *rarely) == 0
    words = capsys.readouterr().out.strip().splitlines()[-1].replace(")", " ").replace(";", " ").split()
    final, best = float(words[2]), float(words[5 if words[4] == "saved" else 4])
    assert (words[4] == "saved") == (final > best)

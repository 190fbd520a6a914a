"""Two processes of the command line: validation counts every image once, though they do not divide evenly."""

import re

import pytest
import torch

MODEL = ("--model", "Classifier", "--model.num_classes", 3, "--model.backbone", "compact", "--model.dim", 8)
TRAINER = ("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false")
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


def data(root, batch_size):
    size = ("--data.batch_size", batch_size, "--data.num_workers", 0)
    return ("--data", "CIFAR10", "--data.root", root, *size, "--data.check_counts", "false")


def results(output):
    """The table that Lightning prints."""
    found = dict(re.findall(r"(val/\w+)\s+│?\s*([\d.]+)", output))
    assert found.keys() >= {"val/loss", "val/top1", "val/top5"}, output
    return {name: float(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory, mini):
    """One epoch by two processes: in its validation one has two batches (3 images), the other one (2 images)."""
    root = mini.class_folders(tmp_path_factory.mktemp("data"))
    folder = tmp_path_factory.mktemp("run")
    run = train(
        "fit", *MODEL, *data(root, 4), *TRAINER, *TWO, "--trainer.max_epochs", 1, "--trainer.num_sanity_val_steps", 0,
        "--checkpoint.dirpath", folder, cwd=folder,
    )  # fmt: skip
    return root, folder, run


@pytest.mark.slow
def test_validation_of_two_processes_is_that_of_one(trained, train, main, capsys):
    root, folder, run = trained
    path = folder / "best.ckpt"
    assert run.returncode == 0, run.stderr
    in_training = torch.load(path, weights_only=True)["callbacks"]
    best = next(float(state["best_model_score"]) for key, state in in_training.items() if "val/top1" in key)

    arguments = ("validate", *MODEL, *data(root, 4), *TRAINER, "--ckpt_path", path)
    assert main(*arguments, "--trainer.devices", 1) == 0
    one = results(capsys.readouterr().out)
    run = train(*arguments, *TWO, cwd=folder)
    assert run.returncode == 0, run.stderr
    two = results(run.stdout)

    # a repeated image would make it sixths
    assert one["val/top1"] in (pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.6), pytest.approx(0.8))
    assert two == pytest.approx(one, rel=1e-5)  # float32 sums of a few numbers, in another order
    assert best == pytest.approx(one["val/top1"])

"""A run that is stopped or killed is resumed, and ends with the parameters of an uninterrupted run, bit by bit."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.report.runs import read_run
from datamodules import CIFAR10
from tests.flags import flags
from tests.slurm import task, with_scontrol

pytestmark = pytest.mark.slow  # real processes, signals and time-outs

ROOT = Path(__file__).parents[2]
RESUME = ("--ckpt_path", "last")


@pytest.fixture(scope="module")
def whole(train, small, tmp_path_factory):
    """The last checkpoint of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    run = train(*small.start, "--trainer.callbacks+=SVDFailureCounter", cwd=folder)
    assert run.returncode == 0, run.stderr
    return small.read(folder)


@pytest.mark.parametrize(
    ("number", "step", "in_validation", "workers", "stopped_at"),
    [
        (signal.SIGTERM, 5, False, 0, 6),  # the step in progress is finished
        (signal.SIGUSR1, 5, False, 2, 6),
        (signal.SIGTERM, 5, False, 2, 6),
        (signal.SIGTERM, 3, False, 0, 4),  # the last step of an epoch: validation and the end of the epoch
        (signal.SIGTERM, 8, True, 2, 8),
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    main, small, whole, same, tmp_path, number, step, in_validation, workers, stopped_at
):
    fault = small.fault("Signal", step=step, number=int(number), in_validation=str(in_validation).lower())
    start = (*small.start, "--data.num_workers", workers, "--trainer.callbacks+=SVDFailureCounter")
    assert main(*start, *fault) == 128 + number
    assert small.read(tmp_path)["global_step"] == stopped_at
    assert main(*start, *RESUME) == 0
    assert same(last := small.read(tmp_path), whole)
    assert last["callbacks"]["SVDFailureCounter"] == whole["callbacks"]["SVDFailureCounter"]
    assert read_run(small.last(tmp_path).parents[1]).curves["train/loss"].steps.tolist() == list(range(12))


@pytest.mark.parametrize(
    ("fault", "saved"),
    [({"name": "Signal", "step": 7, "number": 9}, 6), ({"name": "KillInSave", "step": 9}, 8)],
    ids=["in a step", "in a save"],
)
def test_a_killed_run_loses_no_more_than_the_interval(train, main, small, whole, same, tmp_path, fault, saved):
    run = train(*small.start, "--last.every_n_steps", 3, *small.fault(**fault), cwd=tmp_path)
    assert run.returncode == -signal.SIGKILL
    assert small.read(tmp_path)["global_step"] == saved  # the checkpoint that was half written is not there
    left = {path.name for path in small.last(tmp_path).parent.iterdir()}
    assert left == {"best.ckpt", "last.ckpt"} | ({"last.ckpt.part"} if fault["name"] == "KillInSave" else set())
    assert main(*small.start, *RESUME) == 0
    assert same(small.read(tmp_path), whole)
    assert {path.name for path in small.last(tmp_path).parent.iterdir()} == {"best.ckpt", "last.ckpt"}


def test_nothing_is_saved_between_accumulated_batches(main, small, same, tmp_path):
    start = (*small.start, "--trainer.accumulate_grad_batches", 2)
    assert main(*start) == 0
    assert main(*start, *small.fault("Signal", step=2, number=15)) == 143
    stopped = small.read(tmp_path, 1)
    assert (stopped["global_step"], stopped["CIFAR10"]["batches"]) == (3, 2)
    assert main(*start, *RESUME) == 0
    assert same(small.read(tmp_path, 1), small.read(tmp_path))


PLATEAU = {"": "pytorch_lightning.cli.ReduceLROnPlateau", ".monitor": "val/loss", ".patience": 0, ".threshold": 10.0}


@pytest.mark.parametrize(
    ("options", "step"),
    [
        # Each epoch divides the rate by ten; stopped mid-epoch, and between two epochs.
        ({f"--model.lr_scheduler{key}": value for key, value in PLATEAU.items()}, 5),
        ({f"--model.lr_scheduler{key}": value for key, value in PLATEAU.items()}, 3),
        ({"--trainer.max_steps": 12, "--trainer.max_epochs": -1}, 3),
        ({"--trainer.max_steps": 12, "--trainer.max_epochs": -1}, 5),
        ({"--data.batch_size": 9}, 1),  # one step an epoch
        ({"--trainer.val_check_interval": 2}, 5),
        ({"--trainer.max_steps": 10, "--trainer.max_epochs": -1}, 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else str(value),
)
def test_other_runs_are_resumed_too(main, small, same, tmp_path, options, step):
    start = (*small.start, *flags("", options))
    assert main(*start) == 0
    assert main(*start, *small.fault("Signal", step=step, number=15)) == 143
    assert small.read(tmp_path, 1)["global_step"] == step + 1
    assert main(*start, *RESUME) == 0
    assert same(small.read(tmp_path, 1), small.read(tmp_path))
    one, two = (read_run(small.last(tmp_path, version).parents[1]).curves for version in (0, 1))
    assert one["train/loss"].steps.tolist() == two["train/loss"].steps.tolist()


@pytest.mark.parametrize("first", [6, 8])
def test_a_finished_run_is_resumed_with_more_steps(main, small, same, tmp_path, first):
    """It had ended within an epoch of 4 steps, and at the end of one."""
    start = (*small.start, "--trainer.max_epochs", -1, "--trainer.max_steps")
    assert main(*start, 12) == 0
    assert main(*start, first) == 0
    assert main(*start, 12, *RESUME) == 0
    assert same(small.read(tmp_path, 1), small.read(tmp_path))
    assert read_run(small.last(tmp_path, 1).parents[1]).curves["train/loss"].steps.tolist() == list(range(12))


def test_nothing_is_saved_mid_epoch_if_lightning_chooses_the_order(main, small, tmp_path):
    start = (*small.start, "--trainer.overfit_batches", 3, "--trainer.limit_val_batches", 0)
    assert main(*start, *small.fault("Signal", step=4, number=15)) == 143
    assert small.read(tmp_path)["global_step"] == 3


def test_two_processes_stop_together_and_one_resumes(train, main, small, whole, tmp_path):
    fault = small.fault("Signal", step=5, number=15, rank=1)
    run = train(*small.start, *small.two, *fault, cwd=tmp_path)
    assert run.returncode == 143, run.stderr
    assert run.stderr.count("stopped by SIGTERM: --ckpt_path last resumes") == 1
    assert small.read(tmp_path)["global_step"] == 6
    assert main(*small.start, *RESUME) == 0
    assert small.read(tmp_path)["global_step"] == whole["global_step"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A SLURM job; returns the arguments that ``scontrol`` was called with."""
    for name, value in task(77).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", with_scontrol(tmp_path))
    asked = tmp_path / "asked"
    return lambda: asked.read_text() if asked.exists() else ""


def test_slurm_requeues_and_resumes(main, small, whole, same, tmp_path, monkeypatch, job):
    # The signal of the time limit after the warning.
    faults = (*small.fault("Signal", step=5, number=10), *small.fault("Signal", step=5, number=15))
    assert main(*small.start, *faults) == 138
    assert job() == "requeue 77\n"
    config = small.last(tmp_path, version=77).parents[1] / "config.yaml"
    assert config.is_file()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(*small.start) == 0  # the same command, in the folder where config.yaml is
    assert same(small.read(tmp_path, version=77), whole)
    assert config.parent.parent == tmp_path / "runs/run"
    assert len(list(config.parents[1].iterdir())) == 1


def test_a_requeued_job_resumes_its_own_run(main, small, tmp_path, monkeypatch, job):
    """It does not resume again from the checkpoint that the first start was given."""
    assert main(*small.start, "--trainer.max_epochs", 1, "--trainer.logger.version", 0) == 0
    start = (*small.start, "--ckpt_path", small.last(tmp_path))
    assert main(*start, *small.fault("Signal", step=6, number=10)) == 138
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert main(*start, *small.fault("Signal", step=5, number=15)) == 0  # a step that it does not repeat


def test_a_second_run_of_a_job_does_not_replace_the_first(main, small, tmp_path, job, error):
    short = (*small.start, "--trainer.max_epochs", 1)
    assert main(*short) == 0
    assert main(*short, "--model.meta_layer", "gap") == 1
    assert "job 77 already has a run in runs/run/version_77: " in error()
    assert main(*short, "--model.meta_layer", "gap", "--trainer.logger.version", 1) == 0
    # A file as Lightning's own requeue leaves it.
    small.last(tmp_path, 77).rename(tmp_path / "hpc_ckpt_1.ckpt")
    assert main("validate", *small.start[1:]) == 1
    assert "hpc_ckpt_1.ckpt would be loaded, whichever run it is from" in error()


def test_a_warning_does_not_requeue_a_test(main, small, tmp_path, job):
    assert main(*small.start, "--trainer.max_epochs", 1) == 0
    start = ("validate", *small.start[1:], "--ckpt_path", "best", "--trainer.logger.version", 77)
    assert main(*start, *small.fault("Signal", step=4, number=10, in_validation="true")) == 0
    assert job() == ""


def test_another_batch_size_mid_epoch_is_an_error(main, small, tmp_path, error):
    assert main(*small.start, *small.fault("Signal", step=5, number=15)) == 143
    assert main(*small.start, *RESUME, "--data.batch_size", 3) == 1
    assert "data.batch_size is 3, and 2 in the checkpoint, which is from the middle of an epoch" in error()
    test = ("test", *small.start[1:], *RESUME, "--data.batch_size", 3)
    assert main(*test) == 0


def test_order_and_augmentations_do_not_depend_on_the_processes_or_the_past(small):
    """Two ranks together have the images and the augmentations of one; an epoch can be begun anywhere."""

    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    trainer = SimpleNamespace(training=True, fit_loop=SimpleNamespace(epoch_progress=progress))

    def batches(rank, processes, epoch, skipped=0):
        root = small.start[small.start.index("--data.root") + 1]
        data = CIFAR10(str(root), batch_size=2, num_workers=0, check_counts=False)
        data.setup("fit")
        data.trainer = trainer
        trainer.global_rank, trainer.world_size, progress.current.processed = rank, processes, epoch
        if skipped:
            state = {"seed": 0, "epoch": epoch, "batches": skipped, "batch_size": 2, "epoch_is_complete": 0}
            data.load_state_dict(state)
        torch.rand(epoch)  # whatever was drawn before
        return [images for images, _ in data.train_dataloader()]

    one, first, second = batches(0, 1, 1), batches(0, 2, 1), batches(1, 2, 1)
    assert len(one) == len(first) == len(second) == 4
    assert all(torch.equal(x, torch.cat(parts)) for x, *parts in zip(one, first, second, strict=True))
    assert all(torch.equal(*pair) for pair in zip(batches(0, 1, 1, skipped=3), one[3:], strict=True))
    assert not torch.equal(torch.cat(batches(0, 1, 2)), torch.cat(one))


@pytest.mark.parametrize(
    ("command", "number", "said"),
    [
        ("fit", signal.SIGINT, "interrupted: --ckpt_path last resumes from the last save"),
        ("validate", signal.SIGINT, "interrupted"),
        ("validate", signal.SIGTERM, "stopped by SIGTERM"),
    ],
)
def test_the_last_line_of_a_stopped_command(main, small, capsys, command, number, said):
    fault = small.fault("Signal", step=0, number=int(number), in_validation=str(command == "validate").lower())
    assert main(command, *small.start[1:], *fault) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == said


@pytest.mark.parametrize("seconds", [0.3, 2])
def test_an_interrupt_while_starting_is_one_line(small, tmp_path, seconds):
    command = [sys.executable, str(ROOT / "train.py"), *map(str, small.start)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 128 + signal.SIGINT

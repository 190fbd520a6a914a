"""A SLURM job that is warned, requeued and started again by the same command: its folder, and what it goes on from."""

import os
import signal
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

pytestmark = pytest.mark.slow  # real processes, signals and time-outs

JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1",
       "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1",
       "SLURM_NODELIST": "127.0.0.1"}  # fmt: skip
SHORT = ("--trainer.accelerator", "cpu", "--trainer.limit_train_batches", 3, "--trainer.limit_val_batches", 1,
         "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", 1,
         "--trainer.max_epochs", 3)  # fmt: skip


class Warned(pl.Callback):
    """SLURM's warning during a step."""

    def __init__(self, at: int):
        self.at = at

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_step == self.at:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def job(monkeypatch, tmp_path, main, demo):
    """`fit` as a SLURM job; what it told `scontrol` lies in scontrol.txt."""
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # Lightning sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" >> scontrol.txt\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    return lambda *arguments: main("fit", "--config", demo, *SHORT, *arguments)


def warned(at):
    return ("--trainer.callbacks+", "tests.cluster.test_slurm.Warned", "--trainer.callbacks.at", at)


def runs():
    return sorted(str(path.relative_to("runs/demo")) for path in Path("runs/demo").glob("version_*"))


@pytest.mark.parametrize("last", [(), ("--ckpt_path", "last")], ids=["same command", "last"])
def test_requeued(job, scalars, caplog, monkeypatch, last):
    # another run of this configuration, newer than anything of this job's, is none of its business
    other = Path("runs/demo/version_12/checkpoints/last.ckpt")
    other.parent.mkdir(parents=True)
    other.write_text("of another job")
    assert job(*warned(4), *last) == 128 + signal.SIGUSR1
    assert Path("scontrol.txt").read_text() == "requeue 4711\n"
    os.utime(other)

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert job(*last) == 0
    folder = Path("runs/demo/version_4711")
    assert f"Restoring states from the checkpoint path at {folder / 'checkpoints' / 'last.ckpt'}" in caplog.text
    assert runs() == ["version_12", "version_4711"]
    # no step is made twice, and none is left out
    assert [step for step, _ in scalars(folder)["train/loss"]] == list(range(9))
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 9)

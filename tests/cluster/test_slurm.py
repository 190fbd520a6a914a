"""A SLURM job that is warned, requeued and started again by the same command: its folder and its checkpoint."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from tests.flags import flags
from tests.slurm import task, with_scontrol

pytestmark = pytest.mark.slow  # real processes, signals and time-outs

SHORT = ("--trainer.accelerator", "cpu", "--trainer.limit_train_batches", 3, "--trainer.limit_val_batches", 1,
         "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", 1,
         "--trainer.max_epochs", 3)  # fmt: skip
TWO_NODES = ("--trainer.num_nodes", 2, "--trainer.devices", 1, "--trainer.strategy", "DDPStrategy",
             "--trainer.strategy.timeout", "0:02:00")  # fmt: skip
WARNED = 128 + signal.SIGUSR1


def warned(at, rank=0):
    """SLURM's warning to one process during a step."""
    options = {"step": at, "number": int(signal.SIGUSR1), "rank": rank}
    return ("--trainer.callbacks+", "tests.faults.parts.Signal", *flags("--trainer.callbacks.", options))


def check(scalars, folder):
    """No step was made twice, and none was left out."""
    assert [step for step, _ in scalars(folder)["train/loss"]] == list(range(9))
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (2, 9)


@pytest.fixture
def job(monkeypatch, tmp_path, main, demo):
    """`fit` as a SLURM job of one task; the arguments of `scontrol` are in the file ``asked``."""
    for name, value in task(4711).items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):  # Lightning sets them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", with_scontrol(tmp_path))
    return lambda *arguments: main("fit", "--config", demo, *SHORT, *arguments)


@pytest.mark.parametrize("last", [(), ("--ckpt_path", "last")], ids=["same command", "last"])
def test_requeued(job, scalars, caplog, monkeypatch, last):
    # another run of this configuration, newer than anything of this job's, is none of its business
    other = Path("runs/demo/version_12/checkpoints/last.ckpt")
    other.parent.mkdir(parents=True)
    other.write_text("of another job")
    assert job(*warned(4), *last) == WARNED
    assert Path("asked").read_text() == "requeue 4711\n"
    os.utime(other)

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert job(*last) == 0
    folder = Path("runs/demo/version_4711")
    assert f"Restoring states from the checkpoint path at {folder / 'checkpoints' / 'last.ckpt'}" in caplog.text
    assert sorted(path.name for path in folder.parent.iterdir()) == ["version_12", "version_4711"]
    check(scalars, folder)


@pytest.fixture
def two_nodes(tmp_path, demo):
    """`fit` as a SLURM job of two tasks: the exit status of each, and the time it was seen."""
    arguments = ("fit", "--config", demo, *SHORT, *TWO_NODES, *warned(4, rank=1))
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": with_scontrol(tmp_path, seconds=3)}

    def run(**more):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            more |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        tasks = [
            subprocess.Popen(command, cwd=tmp_path, env={**common, **more, **task(4711, node, 2)}) for node in (0, 1)
        ]
        seen = {}
        end = time.time() + 240
        try:
            while len(seen) < 2 and time.time() < end:
                for node, process in enumerate(tasks):
                    if node not in seen and process.poll() is not None:
                        seen[node] = time.time()
                time.sleep(0.01)
        finally:
            for process in tasks:
                process.kill()
        return [process.wait() for process in tasks], seen

    return run


def test_both_nodes_stop_and_resume(two_nodes, scalars, tmp_path):
    status, seen = two_nodes()
    assert status == [WARNED, WARNED]
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    # srun --kill-on-bad-exit ends the others when one ends: too early for whoever still asks
    assert min(seen.values()) > (tmp_path / "answered").stat().st_mtime

    assert two_nodes(SLURM_RESTART_COUNT="1")[0] == [0, 0]  # the step of the warning is over
    folder = tmp_path / "runs/demo/version_4711"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    check(scalars, folder)

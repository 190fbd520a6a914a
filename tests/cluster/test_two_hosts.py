"""The command line on two hosts of one GPU-less process each: it trains, switches, logs once, and resumes."""

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch

from tests.conftest import ROOT
from tests.flags import flags

pytestmark = pytest.mark.slow  # real processes, signals and time-outs

SCRIPT = ROOT / "tests" / "cluster" / "two_hosts.sh"
NAMESPACES = ["unshare", "--map-root-user", "--net", "--mount"]
SPREAD = {"num_nodes": 2, "devices": 1, "strategy": "DDPStrategy",
    "strategy.timeout": "0:02:00", "accelerator": "cpu", "enable_progress_bar": "false",
          "limit_train_batches": 3, "limit_val_batches": 2, "log_every_n_steps": 1}  # fmt: skip
HYBRID = ("--trainer.callbacks+=HybridProtocol", "--trainer.callbacks.switch_epoch", "1")


def namespaces_are_allowed():
    tools = shutil.which("unshare") and shutil.which("ip")
    # a host and a cable to it, as the script makes them
    cable = "ip link add cable netns host type veth peer name end"
    trial = f"mount -t tmpfs none /run && mkdir /run/netns && ip netns add host && {cable}"
    return bool(tools) and subprocess.run([*NAMESPACES, "sh", "-c", trial], capture_output=True).returncode == 0


@pytest.fixture
def two_hosts(tmp_path, demo):
    """`fit` on both hosts; returns the output of each."""
    separate = namespaces_are_allowed()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PORT": str(free.getsockname()[1])}
    if not separate:
        environment["LOOPBACK"] = "1"
    fit = ["fit", "--config", demo, *flags("--trainer.", SPREAD), *HYBRID]

    def run(*arguments):
        command = [*(NAMESPACES if separate else ()), "sh", SCRIPT, sys.executable, ROOT / "train.py", *fit, *arguments]
        process = subprocess.Popen([*map(str, command)], cwd=tmp_path, env=environment, start_new_session=True)
        try:
            status = process.wait(150)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        printed = [(tmp_path / f"host{host}.log").read_text() for host in (0, 1)]
        assert status == 0, printed
        return printed

    return run


def test_trains_switches_logs_once_and_resumes(two_hosts, scalars, tmp_path):
    first, second = two_hosts("--trainer.max_epochs", "2")
    assert "2 (SVD) with svd-pade" not in first
    assert "hybrid protocol, epoch 1: stage 1 (warm-up) with svd-pade" in first
    # The second host prints nothing of its own.
    assert "validation top-1" in first
    assert "validation top-1" not in second

    first, _ = two_hosts("--trainer.max_epochs", "3", "--ckpt_path", "last")
    assert "hybrid protocol, epoch 2: stage 2 (SVD) with svd-pade" in first
    assert [folder.name for folder in (tmp_path / "runs" / "demo").iterdir()] == ["version_0"]
    run = tmp_path / "runs" / "demo" / "version_0"
    assert len(list(run.glob("events*"))) == 2  # one a start
    logged = scalars(run)
    assert [step for step, _ in logged["train/loss"]] == list(range(9))
    stages = [value for _, value in logged["hybrid/stage"]]
    assert [stage for stage, _ in itertools.groupby(stages)] == [0, 1, 2]
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["hyper_parameters"]["meta_layer"]) == (2, "svd-pade")

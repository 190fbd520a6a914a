"""The scripts of configs/cluster start the processes they announce, with flags that the command line accepts."""

import os
import subprocess

import pytest
import yaml

from tests.conftest import ROOT


@pytest.fixture
def started(tmp_path):
    """The arguments that a script hands to its launcher: ``started("slurm.sh", "srun")``."""

    def run(script, launcher):
        binaries, activate = tmp_path / "bin", tmp_path / ".venv" / "bin" / "activate"
        for folder in (binaries, activate.parent):
            folder.mkdir(parents=True)
        activate.touch()
        (binaries / launcher).write_text('#!/bin/sh\nprintf "%s\\n" "$@" > arguments.txt\n')
        (binaries / launcher).chmod(0o755)
        environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "HEAD": "node0"}
        command = ["bash", ROOT / "configs" / "cluster" / script, "--model.meta_layer", "isqrt-cov"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=30)
        return (tmp_path / "arguments.txt").read_text().splitlines()

    return run


@pytest.mark.parametrize(("script", "launcher"), [("slurm.sh", "srun"), ("torchrun.sh", "torchrun")])
def test_flags(script, launcher, started, main, monkeypatch, capsys):
    arguments = started(script, launcher)
    flags = arguments[arguments.index("train.py") + 1 :]
    monkeypatch.chdir(ROOT)
    assert main(*flags, "--ckpt_path", "null", "--print_config") == 0
    config = yaml.safe_load(capsys.readouterr().out)
    trainer = config["trainer"]
    assert (trainer["num_nodes"], int(trainer["devices"])) == (2, 8)
    assert trainer["strategy"]["init_args"]["timeout"] == "0:10:00"
    assert config["model"]["init_args"]["meta_layer"] == "isqrt-cov"
    assert flags[flags.index("--ckpt_path") + 1] == "last"
    text = (ROOT / "configs" / "cluster" / script).read_text()
    numbers = ("--nodes=2", "--ntasks-per-node=8") if launcher == "srun" else ("--nnodes 2", "--nproc_per_node 8")
    assert all(number in text for number in numbers)
    assert config["data"]["init_args"]["batch_size"] % (2 * 8) == 0

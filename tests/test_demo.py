"""The README's commands in new processes: the whole demo, and a run that is killed and resumed."""

import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import ROOT


def top1(output):
    return float(re.search(r"validation top-1 (\d\.\d+) \(best", output.strip().splitlines()[-1])[1])


@pytest.mark.slow
@pytest.mark.parametrize("meta_layer", ["isqrt-cov", "svd-exact"])
def test_the_demo_learns(train, demo, tmp_path, meta_layer):
    result = train("fit", "--config", demo, "--model.meta_layer", meta_layer, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert top1(result.stdout) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_is_resumed(train, demo, tmp_path, kill):
    arguments = ("fit", "--config", demo, "--model.meta_layer", "svd-exact", "--ckpt_path", "last",
                 "--trainer.limit_train_batches", "20")  # fmt: skip
    command = [sys.executable, ROOT / "train.py", *arguments]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=output, stderr=subprocess.STDOUT)
        last = tmp_path / "runs/demo/version_0/checkpoints/last.ckpt"
        deadline = time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(kill)
        process.wait(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[kill]
    stopped = torch.load(last, weights_only=True)
    assert stopped["epoch"] < 9

    result = train(*arguments, "--trainer.max_epochs", stopped["epoch"] + 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Restored all states from the checkpoint at {last.relative_to(tmp_path)}" in result.stderr
    finished = torch.load(last, weights_only=True)
    assert finished["epoch"] == stopped["epoch"] + 2
    assert finished["global_step"] == (stopped["epoch"] + 3) * 20  # SIGTERM may have saved mid-epoch
    # one run, one folder
    assert [path.name for path in (tmp_path / "runs/demo").iterdir()] == ["version_0"]

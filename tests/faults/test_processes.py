"""Processes that die or hang, and unreadable images: one line, no hang, and the last checkpoint is intact."""

import signal
import time

import pytest

pytestmark = pytest.mark.slow  # real processes, signals and time-outs


def test_a_loader_process_that_is_killed(main, small, tmp_path, error):
    assert main(*small.start, "--data.num_workers", 1, *small.fault("KillWorker", step=5)) == 1
    assert "a loader process was killed: if memory ran out, lower data.num_workers" in error()
    assert small.read(tmp_path)["epoch"] == 0


def test_loader_processes_do_not_outlive_a_run(train, small, tmp_path):
    """The run fails in validation, while the loader processes of training wait."""
    start = time.time()
    fault = small.fault("Poison", steps="[4]", what="validation")
    run = train(*small.start, "--data.num_workers", 2, *fault, cwd=tmp_path)
    assert run.returncode == 1
    assert "error: val/loss is nan" in run.stderr
    assert time.time() - start < 100  # 20 s on an idle machine; waiting for a loader process takes forever


def test_an_image_that_becomes_unreadable_during_the_run(main, mini, small, tmp_path, error):
    root = mini.class_folders(tmp_path / "data")
    start = (*small.start, "--data.root", root)
    assert main(*start, "--trainer.max_epochs", 1) == 0
    broken = mini.cut(min(root.glob("train/*/*.jpg")))
    assert main(*start, "--ckpt_path", "last", "--data.num_workers", 1) == 1
    assert f"unreadable image {broken}: " in error()
    assert small.read(tmp_path)["epoch"] == 0
    assert main(*start, "--ckpt_path", "last", "--data.on_unreadable", "skip") == 0


@pytest.mark.parametrize(("number", "timeout"), [(signal.SIGKILL, 59), (signal.SIGSTOP, 25)])
def test_a_process_that_dies_or_hangs_ends_the_others(train, small, tmp_path, number, timeout):
    """The time-out is that of the process group, also of its start; a process that dies is noticed at once."""
    fault = small.fault("Signal", step=5, number=int(number), rank=1)
    run = train(*small.start, *small.two, "--trainer.strategy.timeout", f"0:00:{timeout}", *fault, cwd=tmp_path)
    ended = time.time()
    assert run.returncode not in (0, None)
    saved = small.last(tmp_path)
    assert ended - saved.stat().st_mtime < (25 + 10 if number == signal.SIGSTOP else 15)
    assert small.read(tmp_path)["epoch"] == 0
    lines = [line for line in run.stderr.splitlines() if "another process of the run died or hangs" in line]
    assert len(lines) == 1
    assert "GLHF" not in lines[0]
    assert ".cc:" not in lines[0]

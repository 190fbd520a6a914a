"""A run folder has one owner at a time, and an existing run is resumed or left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.cli.run_lock import owning
from tests.app.cli.parts import SHORT, only_error
from tests.conftest import ROOT

OWNER = """
import os, sys, time
from pathlib import Path
from app.cli.run_lock import owning
with owning([Path(sys.argv[1])]):
    child = os.fork()  # such as a loader process, which outlives an owner that is killed
    if child:
        print(child, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def owner(tmp_path):
    """Another process that owns ``runs``, and a child that it has forked."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "runs")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)


def test_a_second_owner_is_refused_until_the_first_is_killed(owner, tmp_path):
    runs = tmp_path / "runs"
    other_spelling = tmp_path / "runs" / ".." / "runs"
    message = rf"runs is in use by process {owner.pid} on \S+, which trains there"
    with pytest.raises(OSError, match=message), owning([other_spelling]):
        pass
    owner.kill()
    owner.wait()
    with owning([runs]):
        assert (runs / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_patience_outlasts_an_owner_that_is_about_to_end(owner, tmp_path):
    killer = subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {owner.pid}"])
    with owning([tmp_path / "runs"], patience=60):
        pass
    killer.wait()


def test_a_lock_is_released_at_the_end_and_after_an_error(tmp_path):
    with owning([tmp_path]):
        pass
    with pytest.raises(ZeroDivisionError), owning([tmp_path]):
        raise ZeroDivisionError
    with owning([tmp_path]):
        pass


def test_a_fit_does_not_enter_the_folder_of_a_running_one(main, demo, trained, tmp_path, capsys):
    before = sorted(path.name for path in trained.parent.iterdir())
    with owning([tmp_path / "runs/demo/version_0"]):
        assert main("fit", "--config", demo, "--ckpt_path", "last", "--trainer.max_epochs", 2, *SHORT) == 1
    assert f"runs/demo/version_0 is in use by process {os.getpid()} on " in only_error(capsys)
    assert sorted(path.name for path in trained.parent.iterdir()) == before
    assert main("fit", "--config", demo, "--ckpt_path", "last", "--trainer.max_epochs", 2, *SHORT) == 0


def test_a_test_may_run_while_the_run_is_trained(main, demo, trained, tmp_path):
    with owning([tmp_path / "runs/demo/version_0"]):
        assert main("test", "--config", demo, "--ckpt_path", "best", "--trainer.limit_test_batches", 1) == 0


@pytest.mark.parametrize(
    "again",
    [
        ("--trainer.logger.version", 0),
        ("--trainer.logger.version", "version_0"),
        ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "demo",
         "--trainer.logger.version", 0),
    ],
)  # fmt: skip
def test_a_new_run_in_the_folder_of_another_is_refused(main, demo, trained, capsys, again):
    times = {path: path.stat().st_mtime_ns for path in trained.parent.rglob("*") if path.is_file()}
    assert main("fit", "--config", demo, *again, "--trainer.max_epochs", 1, *SHORT) == 1
    assert "is of an earlier run, and would be replaced: resume that run, --ckpt_path" in only_error(capsys)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_new_run_without_a_logger_is_refused(main, demo, capsys):
    without = ("fit", "--config", demo, "--trainer.logger", "false", *SHORT)
    assert main(*without, "--trainer.max_epochs", 1) == 0
    assert main(*without, "--trainer.max_epochs", 1) == 1
    assert "checkpoints/" in only_error(capsys)
    assert main(*without, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    assert main(*without, "--trainer.max_epochs", 1, "--trainer.default_root_dir", "other") == 0


def test_a_new_run_in_a_given_folder_of_checkpoints_is_refused(main, demo, capsys):
    fit = ("fit", "--config", demo, "--checkpoint.dirpath", "best", *SHORT)
    assert main(*fit, "--trainer.max_epochs", 1) == 0
    assert main(*fit, "--trainer.max_epochs", 1) == 1
    assert "best/best.ckpt is of an earlier run" in only_error(capsys)
    assert main(*fit, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    assert main(*fit, "--trainer.max_epochs", 1, "--checkpoint.filename", "other") == 0


def test_a_run_that_was_killed_in_its_first_epoch_begins_again(main, demo, trained):
    (trained / "last.ckpt").unlink()
    fit = ("fit", "--config", demo, "--trainer.logger.version", 0, "--trainer.max_epochs", 1, *SHORT)
    assert main(*fit, "--ckpt_path", "last") == 0
    assert Path(trained / "last.ckpt").is_file()

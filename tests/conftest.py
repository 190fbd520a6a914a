import os
import subprocess
import sys
from pathlib import Path

# tests that run side by side share the cores: one thread each, in this process and in those it starts
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).parents[1]

pytest_plugins = ["tests.miniature"]


@pytest.fixture(scope="session")
def demo():
    return ROOT / "configs" / "demo.yaml"


@pytest.fixture
def main(monkeypatch, tmp_path):
    """The command line in this process, in an empty folder: ``main("fit", "--config", ...)`` gives the exit status."""
    from app.cli.main import main as entry

    def run(*arguments):
        try:
            entry([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())  # the command line appends the current folder
    return run


@pytest.fixture(scope="session")
def train():
    """The command line in a new process, as a user runs it."""

    def run(*arguments, cwd):
        command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def scalars():
    """The scalars of an event file: tag -> [(step, value), ...]."""

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        events = EventAccumulator(str(folder))
        events.Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}

    return read

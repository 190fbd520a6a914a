"""The command ``python -m app.tables``."""

import csv
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch

from app.console.table import Table
from app.spectral import METHODS
from app.tables import __main__ as command
from app.tables import layer_errors
from app.tables.photographs import feature_maps


@pytest.fixture
def quick(monkeypatch):
    """One photograph and a map of 2x2, so that the references take no time."""
    monkeypatch.setattr(layer_errors, "SIDES", (2,))
    monkeypatch.setattr("app.tables.photographs.PHOTOGRAPHS", layer_errors.PHOTOGRAPHS[:1])


def test_markdown_lines_have_the_same_cells(quick):
    for table in command.tables():
        lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {len(table.header) + 1}
        assert len({len(line) for line in lines}) == 1


def test_command_prints_all_and_writes_csv(quick, tmp_path, capsys):
    command.main(["--csv", str(tmp_path / "new")])
    out = capsys.readouterr().out
    assert "nan" not in out
    files = sorted(path.stem for path in (tmp_path / "new").iterdir())
    assert files == ["approximation_pade", "approximation_taylor", "gradient_bounds", "layer_errors_4"]
    with (tmp_path / "new" / "layer_errors_4.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == list(METHODS)


def test_overflow_is_said_not_raised():
    Q = torch.ones(1, 2, 2)
    assert layer_errors._errors((Q, Q * torch.inf), [(np.ones((2, 2)), np.ones((2, 2)))]) == ["0", "overflow"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("file", "file cannot be used as a folder"),
        ("file/a/b", "file/a/b cannot be used as a folder"),
        ("/proc/none", "/proc/none cannot be written"),
    ],
)
def test_bad_folder_ends_in_one_line(folder, message, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        command.main(["--csv", str(tmp_path / folder)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""  # before any table is computed
    (error,) = captured.err.splitlines()
    assert error.startswith("error: --csv: ")
    assert message in error


def test_an_error_leaves_the_older_file(tmp_path, capsys, monkeypatch):
    (tmp_path / "bounds.csv").write_text("old")
    table = Table("bounds", "", "", ["a"], [["1"]])
    monkeypatch.setattr(command, "tables", lambda: [table])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemExit) as stop:
        command.main(["--csv", str(tmp_path)])
    assert stop.value.code == 1
    assert "bounds.csv cannot be written: No space left on device; the previous file is kept" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"bounds.csv": "old"}


def full(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_photograph_that_cannot_be_read_is_named(monkeypatch):
    def missing():
        raise KeyError("registry")

    monkeypatch.setattr(skimage.data, "moon", missing)
    with pytest.raises(OSError, match="the photograph moon of scikit-image could not be read: 'registry'"):
        feature_maps(2)


def test_the_help_loads_nothing_heavy():
    code = (
        "import sys; from app.tables.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'mpmath', 'skimage'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

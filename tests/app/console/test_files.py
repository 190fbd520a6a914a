"""Output files: whole or as they were, and checked first."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.console.files import check_output_file, check_output_folder, write_file, write_files
from tests.conftest import ROOT


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_files_are_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "a").write_text("old")
    write_files({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert (tmp_path / "a").read_bytes() == b"1"
    assert names(tmp_path) == ["a", "b"]


@pytest.fixture
def small_disk():
    """No file may have more than 10 kB, as on a disk that is full; the limit ends with the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_all_older_files(tmp_path, small_disk):
    """The second file does not fit: the first is not replaced either, so that they belong together."""
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("old")
    with pytest.raises(OSError, match="b cannot be written: File too large; the previous file is kept"):
        write_files({tmp_path / "a": b"1", tmp_path / "b": bytes(20_000)})
    with pytest.raises(OSError, match=r"c cannot be written: File too large$"):
        write_file(tmp_path / "c", bytes(20_000))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old", "b": "old"}


def test_an_interruption_leaves_the_older_file(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a", b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/target")
    check_output_file(tmp_path / "link")
    write_file(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder/target").read_bytes() == b"1"


def test_a_device_is_written_to_and_stays():
    check_output_file(Path("/dev/null"))
    write_file(Path("/dev/null"), b"1")
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (lambda folder: folder, "is a folder: give a file"),
        (lambda folder: folder / "none/file", "there is no folder .*none"),
        (lambda folder: folder / "file/file", "there is no folder .*file"),
        (lambda folder: folder / ("x" * 300), "cannot be written: File name too long"),
        (lambda folder: folder / "a\0b", "is not the name of a file"),
        (lambda folder: Path("/proc/file"), "/proc/file cannot be written: "),
    ],
)
def test_a_file_that_cannot_be_written_is_named_first(path, message, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=message):
        check_output_file(path(tmp_path))
    assert "part" not in "".join(names(tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (lambda folder: folder / "file", "file cannot be used as a folder"),
        (lambda folder: folder / "file/a/b", "file/a/b cannot be used as a folder: .*file is not a folder"),
        (lambda folder: Path("/proc/folder"), "/proc/folder cannot be written: "),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_first(path, message, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=message):
        check_output_folder(path(tmp_path))
    check_output_folder(tmp_path / "new/folder")
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_noticed_first(tmp_path):
    """An empty file can be made there: the check writes one of 4 kB."""
    code = "from pathlib import Path; from app.console.files import *; check_output_file(Path('a'))"
    command = f'ulimit -f 0; exec {sys.executable} -c "{code}"'
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "a cannot be written: File too large" in done.stderr
    assert names(tmp_path) == []


def test_what_is_not_writable_is_named(as_nobody):
    folder = as_nobody.folder
    (folder / "closed").mkdir(mode=0o555)
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    (folder / "open/file").touch()
    (folder / "open/file").chmod(0o444)
    with as_nobody:
        with pytest.raises(OSError, match="closed/file cannot be written: Permission denied"):
            check_output_file(folder / "closed/file")
        with pytest.raises(OSError, match="closed/new cannot be written: Permission denied"):
            check_output_folder(folder / "closed/new")
        with pytest.raises(OSError, match="open/file is read-only"):
            check_output_file(folder / "open/file")
        check_output_file(folder / "open/other")

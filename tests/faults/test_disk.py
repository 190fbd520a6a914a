"""A disk that is full, reports it late, or is not writable: one line, and the previous checkpoint is intact."""

import os
import re
import resource
import subprocess

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from app.cli.checkpoint_io import AtomicCheckpointIO
from app.console.threads import errors_of_threads

pytestmark = pytest.mark.slow  # real processes, signals and time-outs


@pytest.fixture
def disk(tmp_path):
    """A small file system: ``disk(size, options)``."""
    folder, mounted = tmp_path / "disk", []
    folder.mkdir()

    def mount(size, options="rw"):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "none", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small file system is not permitted here")
        mounted.append(folder)
        return folder

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_while_saving(main, small, disk, error):
    folder = disk("8m")
    logger = ("--trainer.logger.save_dir", folder)
    # So that it saves before it logs again.
    rarely = ("--trainer.log_every_n_steps", 100, "--last.every_n_steps", 6)
    assert main(*small.start, *logger, *rarely, *small.fault("Fill", step=5, folder=folder)) == 1
    assert re.search(r"\.ckpt could not be written: No space left on device; the previous one is kept", error())
    checkpoints = folder / "run/version_0/checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] == 0
    (folder / "filler").unlink()
    assert main(*small.start, *logger, "--ckpt_path", "last") == 0


def test_a_full_disk_while_logging(main, small, disk, error):
    folder = disk("8m")
    logger = ("--trainer.logger.save_dir", folder, "--trainer.logger.dict_kwargs", "{max_queue: 1, flush_secs: 0}")
    # So that nothing is saved before the log is written: epochs of 9 steps.
    fault = small.fault("Fill", step=2, folder=folder, log="true")
    assert main(*small.start, *logger, "--data.batch_size", 1, *fault) == 1
    assert f"the log in {folder}/run could not be written: No space left on device" in error()


@pytest.mark.parametrize("close", [SummaryWriter.close, lambda writer: writer.file_writer.event_writer.close()])
def test_no_event_is_lost_silently(disk, close):
    """Not the last one either, after which TensorBoard does not check for errors."""
    writer = SummaryWriter(disk("64k"))

    def log():
        with errors_of_threads("here"):
            writer.file_writer.event_writer._async_writer.write(bytes(100_000))
            close(writer)

    with pytest.raises(OSError, match="the log in here could not be written: No space"):
        log()


@pytest.mark.parametrize("kind", ["read-only", "file"])
def test_a_log_folder_that_cannot_be_written(main, small, disk, tmp_path, error, kind):
    if kind == "file":
        folder = tmp_path / "file"
        folder.touch()
    else:
        folder = disk("1m", "ro")
    assert main(*small.start, "--trainer.logger.save_dir", folder) == 1
    line = error()
    assert str(folder) in line
    assert "Read-only file system" in line or "Not a directory" in line


def test_a_write_that_is_cut_short_keeps_the_previous_file(tmp_path):
    """The same without privileges: a limit on the size of files."""
    path, io = tmp_path / "last.ckpt", AtomicCheckpointIO()
    io.save_checkpoint({"epoch": 1, "state_dict": {"a": torch.zeros(10)}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"last.ckpt could not be written: File too large; the previous one is"):
            io.save_checkpoint({"epoch": 2, "state_dict": {"a": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert io.load_checkpoint(path)["epoch"] == 1


class Hostile:
    def __reduce__(self):
        return open, ("executed", "w")


def test_loading_executes_nothing_even_if_asked_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Hostile()}, "hostile.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        AtomicCheckpointIO().load_checkpoint("hostile.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()

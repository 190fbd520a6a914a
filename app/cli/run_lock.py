"""Let only one run at a time use the folder of a run, and protect existing runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_warn

from app.cli.saved_checkpoints import checkpoints_in, name_pattern

LOCK = ".lock"
"""Name of the file that is locked; it is never removed, and means nothing while nobody holds the lock."""

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}
"""Errors of file systems that have no locks."""

OWNER_LENGTH = 200
"""Bytes of the owner's name that are read."""

_held: set[int] = set()
"""Descriptors of the locks of this process."""


def _close_in_child() -> None:
    # A lock lives as long as any process has its file open: a loader process must not keep that of a killed owner.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def owning(folders: list[Path], patience: float = 0.0) -> Iterator[None]:
    """Hold the locks of the folders of a run, which the system releases when this process ends, however it ends.

    Args:
        folders: the folders; they are made if they do not exist.
        patience: seconds to wait for an owner that is about to end.

    Raises:
        OSError: if another process has one of the folders, which the message names with its owner.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            stack.callback(_release, _acquire(folder, time.monotonic() + patience))
        yield


def _acquire(folder: Path, deadline: float) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    # Python does not let programs that this process starts inherit the descriptor.
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _wait_for_lock(descriptor, folder, deadline)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    _held.add(descriptor)
    return descriptor


def _wait_for_lock(descriptor: int, folder: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                rank_zero_warn(f"{folder} is on a file system without locks: make sure that one run at a time uses it")
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise OSError(f"{folder / LOCK} cannot be locked: {error.strerror}") from error
            if time.monotonic() >= deadline:
                raise OSError(
                    f"{folder} is in use by {_owner(descriptor)}, which trains there: wait for its end, or give this "
                    "run its own --trainer.logger.name or --trainer.logger.version"
                ) from None
            time.sleep(0.5)
        else:
            return


def _owner(descriptor: int) -> str:
    name = os.pread(descriptor, OWNER_LENGTH, 0).decode(errors="replace")
    return name or "another process"


def _release(descriptor: int) -> None:
    if descriptor in _held:  # not in a child that was forked in the meantime
        _held.discard(descriptor)
        os.close(descriptor)


def is_first_process(trainer: pl.Trainer) -> bool:
    """Return whether this process is the first of its run; the trainer itself knows only once the run has begun."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is None or (environment.node_rank() == 0 and environment.local_rank() == 0)


def main_folder(trainer: pl.Trainer) -> Path:
    """Return the folder of the checkpoints of a run, as Lightning's `ModelCheckpoint` chooses it."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    save_dir = trainer.default_root_dir if logger.save_dir is None else logger.save_dir
    return Path(save_dir, str(logger.name), version, "checkpoints")


def folders_to_own(trainer: pl.Trainer) -> list[Path]:
    """Return the folders that a fit writes into: that of its log, and those of its checkpoints that lie elsewhere."""
    saving = any(isinstance(callback, Checkpoint) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    folders: list[Path] = []
    for logger in trainer.loggers:
        # All loggers of a run count the versions before there is a folder of this one, and agree on its number.
        _ = logger.version
    if trainer.loggers:
        folders.append(main_folder(trainer).parent)
    elif saving:
        folders.append(main_folder(trainer))
    folders += [folder for _, folder in _elsewhere(trainer)]
    unique: dict[Path, None] = {}
    for folder in folders:
        if "://" not in str(folder) and ":/" not in str(folder):  # a URL, or what `Path` makes of it
            unique[folder.resolve()] = None
    return list(unique)


def _elsewhere(trainer: pl.Trainer) -> list[tuple[ModelCheckpoint, Path]]:
    """The callbacks that save in a folder of their own, with that folder."""
    found: list[tuple[ModelCheckpoint, Path]] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            found.append((callback, Path(callback.dirpath)))
    return found


def refuse_existing_run(trainer: pl.Trainer, ckpt_path: str | None, *, may_begin_again: bool) -> None:
    """Raise an error if a fit would replace the checkpoints of another run.

    Args:
        trainer: the trainer, before its run begins.
        ckpt_path: the checkpoint that the fit resumes from.
        may_begin_again: whether ``last`` was asked for, so that what was saved before the first ``last.ckpt`` may go.

    Raises:
        ValueError: if there are checkpoints that do not belong to the run that is resumed.
    """
    main = main_folder(trainer)
    own = {main.resolve(), *(folder.resolve() for _, folder in _elsewhere(trainer))}
    if ckpt_path and own & set(Path(ckpt_path).resolve().parents):
        return
    found: list[Path] = []
    for file in checkpoints_in(main):
        if not may_begin_again or file.name == "last.ckpt":
            found.append(file)
    if not may_begin_again:
        for callback, folder in _elsewhere(trainer):
            found += _replaced_by(callback, folder)
    if found:
        raise ValueError(
            f"{found[0]} is of an earlier run, and would be replaced: resume that run, --ckpt_path {found[0]}, or give "
            "this one its own --trainer.logger.name or --trainer.logger.version (without a logger, "
            "--trainer.default_root_dir; for --checkpoint.dirpath, another folder)"
        )


def _replaced_by(callback: ModelCheckpoint, folder: Path) -> list[Path]:
    """The existing files that a callback with a folder of its own would replace."""
    if callback._enable_version_counter or not callback.filename:
        return []
    pattern = name_pattern(callback.filename)
    return [file for file in checkpoints_in(folder) if fnmatchcase(str(file.relative_to(folder)), pattern)]

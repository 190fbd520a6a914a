"""Search folders for the best and the last checkpoint; a folder that cannot be searched is not an empty one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from app.models.torch_files import read_checkpoint


def find_last(folders: Sequence[Path]) -> Path | None:
    """Return the most recent ``last.ckpt`` of the folders.

    Raises:
        OSError: if a folder cannot be searched.
    """
    found = []
    for folder in folders:
        found += [file for file in checkpoints_in(folder) if file == folder / "last.ckpt"]
    return _newest(found)


def find_best(folders: Sequence[Path], name: str, elsewhere: str | Path | None) -> Path | None:
    """Return the most recent of the best checkpoints of the folders.

    A file that is named as the options say is taken first. A run that was started with other options names its best
    checkpoint in its most recent one; only files in the same folder are taken from there.

    Args:
        folders: folders of checkpoints of one run each.
        name: the option ``checkpoint.filename``.
        elsewhere: the option ``checkpoint.dirpath``, which replaces the folders.

    Raises:
        OSError: if a folder cannot be searched, or if the best checkpoint was saved elsewhere; the message says where.
    """
    if elsewhere:
        folders = [Path(elsewhere)]
    found: list[Path] = []
    saved_elsewhere: list[str] = []
    for folder in folders:
        files = checkpoints_in(folder)
        best = _best_of(folder, files, name)
        if best is not None:
            found.append(best)
        elif files:
            saved_elsewhere += _named_best(max(files, key=written))
    if not found and saved_elsewhere:
        raise FileNotFoundError(
            f"--ckpt_path best: there is no best checkpoint in {folders[0]}; the run saved it as {saved_elsewhere[0]}: "
            "give that path, or the --checkpoint.dirpath of the run"
        )
    return _newest(found)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return all files ``*.ckpt`` in a folder and in its sub-folders; there are none if it does not exist.

    Raises:
        OSError: if it cannot be read, or is a link that leads nowhere.
    """
    found: list[Path] = []
    # Without `onerror`, `os.walk` skips what it may not read, as `Path.glob` does.
    for parent, _, names in os.walk(folder, onerror=_cannot_search):
        found += [Path(parent, name) for name in names if name.endswith(".ckpt")]
    return found


def _cannot_search(error: OSError) -> None:
    folder = Path(error.filename)
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise OSError(f"{folder} cannot be searched for checkpoints: {error.strerror}") from error
    for part in (folder, *folder.parents):
        if os.path.lexists(part):
            if part.is_symlink() and not os.path.exists(part):  # noqa: PTH110, `Path.exists` may raise
                raise OSError(f"{part} is a link to a folder that does not exist") from error
            return


def written(path: Path) -> float:
    """Return when a file was written.

    Raises:
        OSError: if that cannot be known: the file may be the one that is searched.
    """
    try:
        return path.stat().st_mtime
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error


def _newest(files: Iterable[Path]) -> Path | None:
    return max(files, key=written, default=None)


def _best_of(folder: Path, files: Sequence[Path], name: str) -> Path | None:
    """The best checkpoint of one folder."""
    candidates = [file for file in files if fnmatchcase(str(file.relative_to(folder)), name_pattern(name))]
    if len(candidates) == 1 and "{" not in name:
        return candidates[0]
    newest = _newest(candidates or files)
    if newest is None:
        return None
    # A checkpoint is saved whenever there is a new best one: the most recent of them knows the best.
    for path in _named_best(newest):
        for file in files:
            if PurePath(path).parts[-len(file.relative_to(folder).parts) :] == file.relative_to(folder).parts:
                return file
    return newest if candidates else None


def name_pattern(name: str) -> str:
    """Return the shell pattern of the file names that ``checkpoint.filename`` gives.

    >>> name_pattern("{epoch}-{val/top1:.2f}")
    '*-*.ckpt'
    """
    return f"{re.sub(r'{.*?}', '*', name)}.ckpt"


def _named_best(file: Path) -> list[str]:
    """The path of the best checkpoint, as a checkpoint has it in the state of `BestCheckpoint`."""
    checkpoint: Any = read_checkpoint(file)
    states = checkpoint.get("callbacks") if isinstance(checkpoint, dict) else None
    if not isinstance(states, dict):
        return []
    for key, state in states.items():
        # The key of `BestCheckpoint`; a second `ModelCheckpoint`, of the user's, comes after it.
        if str(key).startswith("ModelCheckpoint") and isinstance(state, dict):
            path = state.get("best_model_path")
            if isinstance(path, str) and path:
                return [path]
    return []

"""Output files: checked before the work, and written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

PROBE = bytes(4096)
"""Content of the file that is written to try a folder: an empty one can be made on a full disk too."""


def check_output_file(path: Path) -> None:
    """Check that a file can be written, so that minutes of work are not lost at their end.

    Raises:
        OSError: if it cannot; the message names the file and says why.
    """
    target = _target(path)
    if os.path.isdir(target):  # noqa: PTH112, methods of `Path` raise where they may not look
        raise IsADirectoryError(f"{path} is a folder: give a file")
    for folder in (path.parent, target.parent):  # a link may lead to another folder
        if not os.path.isdir(folder):  # noqa: PTH112
            raise FileNotFoundError(f"there is no folder {folder}")
    if os.path.exists(target):  # noqa: PTH110
        if not os.access(target, os.W_OK):
            raise PermissionError(f"{path} is read-only")
        if not target.is_file():  # a device or a pipe
            return
    _try(_part(target), path)


def check_output_folder(path: Path) -> None:
    """Check that files can be written into a folder, or that it can be made.

    Raises:
        OSError: if they cannot; the message names the folder and says why.
    """
    existing = _target(path)
    while not os.path.lexists(existing):
        existing = existing.parent
    if not os.path.isdir(existing):  # noqa: PTH112
        raise NotADirectoryError(f"{path} cannot be used as a folder: {existing} is not a folder")
    _try(existing / f"probe-{os.getpid()}.part", path)


def write_file(path: Path, data: bytes) -> None:
    """Write one file, as `write_files` does."""
    write_files({path: data})


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files beside their destinations, and put them in their places when all are complete and on the disk.

    A disk that is full, or a process that is killed, leaves all older files as they were, and at most files
    ``NAME.part``, which the next call overwrites. If the destination is a link, its target is replaced, and the link
    stays.

    Raises:
        OSError: if a file cannot be written; the message names it and says why.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            with _naming(path):
                target = _target(path)
                if os.path.exists(target) and not target.is_file():  # noqa: PTH110, a device or a pipe stays
                    target.write_bytes(data)
                else:
                    parts[target] = _part(target)
                    _write(parts[target], data)
        for target, part in parts.items():
            with _naming(target):
                part.replace(target)
    except BaseException:
        for part in parts.values():
            part.unlink(missing_ok=True)
        raise


def _target(path: Path) -> Path:
    """The absolute path with links resolved; unlike `Path.resolve`, it raises no error for circular links."""
    if "\0" in str(path):
        raise OSError(f"{str(path)!r} is not the name of a file")
    return Path(os.path.realpath(path))


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        # Without this a power failure after the renaming may leave an empty file.
        os.fsync(file.fileno())


def _try(part: Path, path: Path) -> None:
    try:
        with _naming(path):
            part.write_bytes(PROBE)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors: when a disk is full, the system does not."""
    try:
        yield
    except OSError as error:
        kept = ""
        if os.path.isfile(path):  # noqa: PTH113
            kept = "; the previous file is kept"
        raise OSError(f"{path} cannot be written: {error.strerror or error}{kept}") from error

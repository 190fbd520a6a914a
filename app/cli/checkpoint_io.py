"""Write checkpoints atomically: whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.cloud_io import _is_local_file_protocol
from pytorch_lightning.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a file beside the checkpoint, and renames it when it is complete and on the disk.

    A process that is killed, or a disk that is full, leaves the previous checkpoint, and at most a file ``NAME.part``,
    which the next save overwrites. Lightning 2.6 writes to the system's temporary folder
    (https://github.com/Lightning-AI/pytorch-lightning/issues/21253): from there, a file can only be copied to another
    file system, and a copy can be cut short. Files are read with ``weights_only=True``, so that nothing in them is
    executed. URLs are left to Lightning.

    Raises:
        OSError: in `save_checkpoint`, if the file cannot be written; the message names it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(str(path).removeprefix("file://"))
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, part)
            part.replace(path)
            _flush_folder(path.parent)
        except OSError as error:
            part.unlink(missing_ok=True)
            kept = "there is no previous one"
            if path.exists():
                kept = "the previous one is kept"
            raise OSError(f"checkpoint {path} could not be written: {error.strerror or error}; {kept}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        checkpoint: dict[str, Any] = super().load_checkpoint(path, map_location or (lambda storage, _: storage), True)
        return checkpoint


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch notices that a write was cut short, but hides the reason.
            if isinstance(cause := error.__context__, OSError):
                raise cause from error
            raise
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power failure too, on file systems that can do this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Read torch files safely: nothing in them is executed, and a damaged file is a one-line error."""

from __future__ import annotations

import hashlib
import mmap
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from app.console.text import printable, shortened
from app.models.plain_data import check_plain

HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")
"""Where torchvision's files, such as ``resnet50-19c8e357.pth``, have the beginning of their SHA-256."""


def read_checkpoint(path: str | Path) -> Any:
    """Read a torch file: nothing in it is executed, and it must be plain data and tensors of bounded size.

    A file in torch's format from before version 1.6 gives a warning: it has no checksums, so damage to its numbers
    cannot be detected.

    Raises:
        ValueError: if there is no such file, it is damaged, or it holds more than plain types and tensors.
    """
    name = printable(str(path))
    if not Path(path).is_file():
        raise ValueError(f"{name or 'an empty name'} is not a file")
    try:
        has_checksums = zipfile.is_zipfile(path)
        if has_checksums:
            _check_archive(path)
        _refuse_reserved_memory(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_plain(content, Path(path).stat().st_size)
    except Exception as error:  # A damaged or hostile file may provoke any of them.
        reason = type(error).__name__
        if isinstance(error, ValueError):
            reason = shortened(printable(str(error)), 300)
        raise ValueError(f"{name} cannot be read safely as a torch file ({reason})") from error
    if not has_checksums and not _has_hash_of_its_name(Path(path)):
        rank_zero_warn(f"{name} is in torch's older format, without checksums: whether it is damaged cannot be checked")
    return content


def _check_archive(path: str | Path) -> None:
    """Verify the checksums of a zip archive: torch ignores them, and would return wrong numbers."""
    with zipfile.ZipFile(path) as archive:
        total = 0
        for record in archive.infolist():
            # torch never compresses. A compressed record could unfold to any size.
            if record.compress_type != zipfile.ZIP_STORED:
                raise ValueError("a record is compressed")
            total += record.file_size
        if total > Path(path).stat().st_size:
            raise ValueError("its records overlap")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(damaged)


def _refuse_reserved_memory(path: str | Path) -> None:
    """Refuse a pickle that names `bytearray`: torch (2.14) makes one of any size that the pickle asks for."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for module in (b"builtins", b"__builtin__"):
            if content.find(b"c" + module + b"\nbytearray\n") >= 0:
                raise ValueError("it holds a bytearray, which is not plain data")


def _has_hash_of_its_name(path: Path) -> bool:
    """Return whether the name of a file has the beginning of its SHA-256, as the names of torchvision's weights do."""
    match = HASH_IN_NAME.search(path.name)
    if match is None:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return hashlib.sha256(content).hexdigest().startswith(match[1])


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, bare or under ``state_dict``.

    Raises:
        ValueError: if it cannot be read safely, or holds no dictionary of finite tensors.
    """
    state = read_checkpoint(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no dictionary of tensors")
    try:
        check_weights(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return state


def check_weights(state: dict[Any, Any]) -> None:
    """Check that a dictionary holds finite tensors by name, and nothing else.

    Raises:
        ValueError: for anything else; the message names the entry.
    """
    for name, tensor in state.items():
        shown = shortened(printable(str(name)), 120)
        if not isinstance(name, str):
            raise ValueError(f"it holds no dictionary of tensors by name: {shown} is not a name")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"it holds no dictionary of tensors: {shown} is a {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta or tensor.is_quantized:
            kind = f"{tensor.layout}, {tensor.dtype}, {tensor.device}".replace("torch.", "")
            raise ValueError(f"{shown} is not an ordinary tensor of real numbers ({kind})")
        if not is_finite(tensor):
            raise ValueError(f"{shown} contains non-finite values: the file is damaged, or its training diverged")


def is_finite(tensor: Tensor) -> bool:
    """Return whether all numbers of a tensor are finite."""
    if not tensor.is_floating_point():
        return True
    if tensor.element_size() == 1:  # torch (2.14) has no such test for the formats of 8 bits
        tensor = tensor.float()
    return bool(tensor.isfinite().all())

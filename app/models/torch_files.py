"""Reading files of torch safely: nothing in them is executed, and a damaged file is an error of one line."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of torch; nothing in it is executed.

    Raises:
        ValueError: if there is no such file, it is damaged, or it holds more than plain types and tensors.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path or 'an empty name'} is not a file")
    try:
        _check_integrity(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # A damaged or hostile file may provoke any of them.
        raise ValueError(f"{path} cannot be read safely as a file of torch ({type(error).__name__})") from error


def _check_integrity(path: str | Path) -> None:
    # torch ignores the checksums of the zip archive, and would return wrong numbers from a damaged file.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as records:
            if damaged := records.testzip():
                raise zipfile.BadZipFile(damaged)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, bare or under ``state_dict``.

    Raises:
        ValueError: if it cannot be read safely, or holds no dictionary of tensors.
    """
    state = read_checkpoint(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds no dictionary of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path} holds no dictionary of tensors")
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
            raise ValueError(f"{path}: {name} is not an ordinary tensor of real numbers")
    return state

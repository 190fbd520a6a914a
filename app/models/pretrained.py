"""Weights from files: reading them safely, the names that other programs gave them, and what fits into a network.

The names here are ``backbone.<torchvision's name>``, ``pooling.reduction.0`` (1x1 convolution), ``pooling.reduction.1``
(its batch norm) and ``classifier``.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
"""The children of torchvision's ResNet in their order: a Sequential of them has numbers in place of names."""

REDUCTION = {
    "layer_reduce": "pooling.reduction.0",  # fast-MPN-COV, DifferentiableSVD: src/network/mpncovresnet.py
    "layer_reduce_bn": "pooling.reduction.1",
    "representation.conv_dr_block.0": "pooling.reduction.0",  # the same, src/representation/MPNCOV.py
    "representation.conv_dr_block.1": "pooling.reduction.1",
}
IN_ORDER = {
    **{f"features.{n}": f"backbone.{child}" for n, child in enumerate(CHILDREN)},
    "features.8": "pooling.reduction.0",
    "features.9": "pooling.reduction.1",
}
"""ResNets that were made a Sequential (src/network/base.py); AlexNet and MobileNetV2 call theirs `features` anyway."""

COUNTERS = "num_batches_tracked"
"""Counters of batch norm that older files do not have; nothing depends on them."""


def our_name(name: str, resnet: bool) -> str:
    """The name here of a tensor from torchvision, fast-MPN-COV, DifferentiableSVD, or a run of this program.

    Args:
        name: the name in the file, where DataParallel may have put ``module.`` anywhere.
        resnet: whether the network is a ResNet: ``features.N`` then counts its children.
    """
    name = re.sub(r"\bmodule\.", "", name)
    table = {**REDUCTION, **(IN_ORDER if resnet else {}), "fc": "classifier"}
    for theirs, ours in table.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    return name if name.startswith(("backbone.", "pooling.", "classifier.")) else f"backbone.{name}"


@dataclass
class Loaded:
    """What became of the tensors of a file.

    Attributes:
        loaded: names of what was loaded.
        misfits: of what has another shape, with both shapes.
        missing: of what the file does not hold, or not in full.
        unused: of what the network does not have.
    """

    loaded: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def load_fitting(network: nn.Module, state: dict[str, Tensor]) -> Loaded:
    """Load the layers whose names and shapes fit, leave the others as they are, and tell which is which."""
    own, result = network.state_dict(), Loaded()
    misfits = [name for name, value in own.items() if name in state and state[name].shape != value.shape]
    result.misfits = [f"{name} ({_shape(state[name])} in the file, {_shape(own[name])} here)" for name in misfits]
    torn = {_layer(name) for name in misfits}  # half a layer is worse than none
    for name in own:
        if name in state and _layer(name) not in torn:
            result.loaded.append(name)
        elif name not in misfits and not name.endswith(COUNTERS):
            result.missing.append(name)
    result.unused = [name for name in state if name not in own]
    network.load_state_dict({name: state[name] for name in result.loaded}, strict=False)
    return result


def weights_for(network: nn.Module, path: str, *, resnet: bool) -> dict[str, Tensor]:
    """The tensors of a file under the names that they have here.

    Args:
        network: a classifier with `backbone`, `pooling` and `classifier`.
        path: a checkpoint of this program, of fast-MPN-COV or DifferentiableSVD, or a file of torchvision's weights.
        resnet: whether the backbone is a ResNet.

    Raises:
        ValueError: if the file cannot be read safely.
    """
    try:
        state = {our_name(name, resnet): value for name, value in read_state_dict(path).items()}
    except ValueError as error:
        raise ValueError(f"model.init_from: {error}: give another file, or null for random weights") from error
    name = "classifier.weight"
    if name in state and state[name].ndim == 2:
        state[name] = _for_upper_triangle(state[name], network.get_parameter(name).shape[1])
    return state


def initialise(network: nn.Module, state: dict[str, Tensor], path: str, *, required: bool = True) -> Loaded:
    """Start from weights, as far as they fit, and say what was loaded, what was not, and why.

    Args:
        network: a classifier with `backbone`, `pooling` and `classifier`.
        state: tensors by name.
        path: the file that they are from.
        required: nothing loaded into the backbone is an error; false: a warning.

    Raises:
        ValueError: if nothing fits the backbone.
    """
    own = network.state_dict()
    result = load_fitting(network, state)
    # vectors fit by accident, and a reduction and a classifier those of another backbone
    if not any(name.startswith("backbone.") and own[name].ndim > 1 for name in result.loaded):
        example = f"it holds {next(iter(state), 'nothing')}, the network {next(iter(own))}"
        message = f"nothing of {path} fits this backbone ({example})"
        if required:
            raise ValueError(f"model.init_from: {message}: choose its backbone, or --model.init_from_required false")
        rank_zero_warn(message)
    tell(result, path)
    return result


def tell(result: Loaded, path: str) -> None:
    """Print what was loaded from a file; warn where its backbone is not quite this one."""
    parts = sorted({name.split(".")[0] for name in result.loaded})
    rank_zero_info(f"{path}: loaded {len(result.loaded)} tensors of {', '.join(parts) or 'nothing'}")
    for what, names in (
        ("of another shape, not loaded", result.misfits),
        ("left as initialised", result.missing),
        ("in the file, not used", result.unused),
    ):
        if not names:
            continue
        line = f"{path}: {what}: {', '.join(names[:8])}" + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        if any(name.startswith("backbone.") for name in names):
            rank_zero_warn(line)
        else:
            rank_zero_info(line)


def read_checkpoint(path: str | Path) -> Any:
    """Read a file of torch; nothing in it is executed.

    Raises:
        ValueError: if there is no such file, it is damaged, or it holds more than plain types and tensors.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path or 'an empty name'} is no file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as records:
                if damaged := records.testzip():  # torch does not look at the checksums
                    raise zipfile.BadZipFile(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise ValueError(f"{path} cannot be read safely as a file of torch ({type(error).__name__})") from error


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file by name, bare or under ``state_dict``.

    Raises:
        ValueError: if it cannot be read safely, or holds no dictionary of tensors.
    """
    state = read_checkpoint(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f"{path} holds no dictionary of tensors")
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
            raise ValueError(f"{path}: {name} is no ordinary tensor of real numbers")
    return state


def _layer(name: str) -> str:
    """The layer that a tensor belongs to; the reduction is one with its batch norm."""
    return "pooling.reduction" if name.startswith("pooling.reduction.") else name.rpartition(".")[0]


def _for_upper_triangle(weight: Tensor, inputs: int) -> Tensor:
    """A classifier ``(K, d d)`` on all entries of a symmetric matrix, for its upper triangle ``(K, d (d + 1) / 2)``.

    DifferentiableSVD's ResNet has one. The entries (i, j) and (j, i) are equal, so their weights add up.
    """
    d = round(weight.shape[1] ** 0.5)
    if weight.shape[1] != d * d or inputs != d * (d + 1) // 2:
        return weight
    square = weight.unflatten(1, (d, d))
    rows, columns = torch.triu_indices(d, d)
    return (square + square.mT - torch.diag_embed(square.diagonal(dim1=1, dim2=2)))[:, rows, columns]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

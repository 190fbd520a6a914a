"""Initialising a network from the weights in a file: loading the layers that fit, and reporting what was loaded."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from app.console.text import brief, printable
from app.models.reference_names import classifier_on_upper_triangle, our_name
from app.models.torch_files import read_state_dict

COUNTERS = "num_batches_tracked"
"""Counters of batch norm that older files do not have; nothing depends on them."""

LISTED = 8
"""Largest number of names in a line of the report."""


@dataclass
class LoadingReport:
    """The names of the tensors that were loaded from a file, and of those that were not, by reason.

    Attributes:
        loaded: names of the tensors that were loaded.
        shape_mismatches: those that have another shape in the file, with both shapes.
        missing: those that the file does not hold, or whose layer it holds only in part.
        unused: the tensors in the file that the network does not have.
    """

    loaded: list[str] = field(default_factory=list)
    shape_mismatches: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def initialise(network: nn.Module, state: dict[str, Tensor], path: str, *, required: bool) -> LoadingReport:
    """Load the layers of a file whose names and shapes fit, and print what was loaded, what was not, and why.

    Args:
        network: a module whose child `backbone` must get weights, such as a classifier.
        state: tensors by their names in the network.
        path: the file that they are from.
        required: raise an error if no backbone weight could be loaded; false: warn.

    Raises:
        ValueError: if no weight fits the backbone, and it is required; or if weights are of another kind of numbers.
    """
    try:
        report = load_fitting(network, state)
    except ValueError as error:
        raise ValueError(f"model.init_from: {path}: {error}") from error
    if not _loaded_into_backbone(network, report):
        example = f"it holds {brief(next(iter(state), 'nothing'))}, the network {next(iter(network.state_dict()))}"
        message = f"nothing of {path} fits this backbone ({example})"
        if required:
            raise ValueError(f"model.init_from: {message}: choose its backbone, or --model.init_from_required false")
        rank_zero_warn(f"{message}: it starts from random weights")
    print_report(report, path)
    return report


def load_fitting(network: nn.Module, state: dict[str, Tensor]) -> LoadingReport:
    """Load the layers whose names and shapes fit, and leave the others as they are.

    Raises:
        ValueError: if weights are whole numbers in one of the two; torch would convert them without a word.
    """
    own, report = network.state_dict(), LoadingReport()
    for name, tensor in own.items():
        if name in state and state[name].is_floating_point() != tensor.is_floating_point():
            kinds = f"{state[name].dtype} in the file, {tensor.dtype} here".replace("torch.", "")
            raise ValueError(f"{name} is of another kind of numbers ({kinds})")
    mismatching = [name for name, tensor in own.items() if name in state and state[name].shape != tensor.shape]
    # A weight without its bias, or a reduction without its batch norm, is worse than an initialised layer.
    partially_matching = {_layer(name) for name in mismatching}
    for name, tensor in own.items():
        if name in mismatching:
            report.shape_mismatches.append(f"{name} ({_shape(state[name])} in the file, {_shape(tensor)} here)")
        elif name in state and _layer(name) not in partially_matching:
            report.loaded.append(name)
        elif not name.endswith(COUNTERS):
            report.missing.append(name)
    report.unused = [name for name in state if name not in own]
    network.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report


def _loaded_into_backbone(network: nn.Module, report: LoadingReport) -> bool:
    """Whether a kernel or matrix of the backbone was loaded.

    Vectors do not count, as they fit other networks by accident, and neither does the reduction or the classifier of
    another backbone.
    """
    own = network.state_dict()
    return any(name.startswith("backbone.") and own[name].ndim > 1 for name in report.loaded)


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
        state = _under_our_names(read_state_dict(path), path, resnet)
    except ValueError as error:
        raise ValueError(f"model.init_from: {error}: give another file, or null for random weights") from error
    name = "classifier.weight"
    if name in state and state[name].ndim == 2:
        classes, inputs = network.get_parameter(name).shape
        if state[name].shape[0] == classes:  # one of other classes is not loaded, and may be of any size
            state[name] = classifier_on_upper_triangle(state[name], inputs)
    return state


def _under_our_names(stored: dict[str, Tensor], path: str, resnet: bool) -> dict[str, Tensor]:
    """The tensors of a file by the names that they have here.

    Raises:
        ValueError: if two of them have the same name here.
    """
    state: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in stored.items():
        here = our_name(name, resnet)
        if here in state:
            both = f"{brief(origin[here])} and {brief(name)}"
            raise ValueError(f"{path} holds two tensors for {brief(here)}: {both}, of which only one can be right")
        state[here], origin[here] = tensor, name
    return state


def print_report(report: LoadingReport, path: str) -> None:
    """Print what was loaded from a file; warn if a part of the backbone was not, or was not used."""
    parts = sorted({name.split(".")[0] for name in report.loaded})
    rank_zero_info(f"{printable(path)}: loaded {len(report.loaded)} tensors of {', '.join(parts) or 'nothing'}")
    _print_names(f"{path}: of another shape, not loaded", report.shape_mismatches)
    _print_names(f"{path}: left as initialised", report.missing)
    _print_names(f"{path}: in the file, not used", report.unused)


def _print_names(title: str, names: list[str]) -> None:
    if not names:
        return
    # Names come from a file, and may be of any length and hold control characters.
    line = f"{printable(title)}: {', '.join(brief(name, 200) for name in names[:LISTED])}"
    if len(names) > LISTED:
        line += f" and {len(names) - LISTED} more"
    if any(name.startswith("backbone.") for name in names):
        rank_zero_warn(line)
    else:
        rank_zero_info(line)


def _layer(name: str) -> str:
    """The layer that a tensor belongs to; the reduction is one with its batch norm."""
    if name.startswith("pooling.reduction."):
        return "pooling.reduction"
    return name.rpartition(".")[0]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"

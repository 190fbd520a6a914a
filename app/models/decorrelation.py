"""A decorrelated batch norm in place of the first batch norm of a backbone (Song et al., ECCV 2022, fig. 6)."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from app.layers import DecorrelatedBatchNorm2d

LAYER_OPTIONS = set(inspect.signature(DecorrelatedBatchNorm2d).parameters) - {"num_features", "method", "options"}
"""The options of the layer itself; all others are those of its method."""


def decorrelate(backbone: nn.Module, method: Any, options: dict[str, Any] | None = None) -> None:
    """Put a decorrelated batch norm in place of the first batch norm.

    Args:
        backbone: changed in place.
        method: method of the inverse square root: a name in `app.spectral.METHODS`, or an `app.spectral.Method`.
        options: other arguments of `DecorrelatedBatchNorm2d`, and options of the method, such as ``iterations``; those
            of the method may also be given under ``options``.

    Raises:
        ValueError: for a network without batch norm, or a wrong method or option.
    """
    name = _first_batch_norm(backbone)
    of_layer, of_method = _split(options or {})
    channels = backbone.get_submodule(name).num_features
    try:
        layer = DecorrelatedBatchNorm2d(channels, method=method, options=of_method, **of_layer)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        choice = f"the layer's own options are {', '.join(sorted(LAYER_OPTIONS))}"
        raise ValueError(f"model.decorrelation {method}, decorrelation_options: {error} ({choice})") from error
    backbone.set_submodule(name, layer)


def decorrelated_convolution(backbone: nn.Module) -> nn.Conv2d | None:
    """The convolution before the decorrelated batch norm, ``None`` in a network without one."""
    convolution = None
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            convolution = module
        if isinstance(module, DecorrelatedBatchNorm2d):
            return convolution
    return None


def _first_batch_norm(backbone: nn.Module) -> str:
    for name, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            return name
    raise ValueError("decorrelation replaces the first batch norm, but this backbone has none")


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the layer, and those of its method."""
    of_layer: dict[str, Any] = {}
    of_method: dict[str, Any] = {}
    for key, value in options.items():
        if key in LAYER_OPTIONS:
            of_layer[key] = value
        elif key == "options":
            of_method |= value or {}
        else:
            of_method[key] = value
    return of_layer, of_method

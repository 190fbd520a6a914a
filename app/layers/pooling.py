"""Pooling heads by the name of their meta-layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from ..spectral import METHODS, ScalarFunction
from .global_average_pooling import GlobalAveragePooling
from .global_covariance_pooling import FUNCTIONS, GlobalCovariancePooling, MetaLayer

META_LAYERS = (*METHODS, *FUNCTIONS)
"""The built-in names that `GlobalCovariancePooling` takes; `meta_layers` adds ``gap`` and the registered ones."""


def meta_layers() -> tuple[str, ...]:
    """The names of the meta-layers: ``gap``, the methods of `app.spectral` and registered ones, ``power``, ``log``."""
    return ("gap", *METHODS, *FUNCTIONS)


def build_pooling(
    meta_layer: MetaLayer,
    in_channels: int,
    dim: int | list[int] | None = 256,
    meta_options: Mapping[str, Any] | None = None,
    spectral_dtype: Literal["float32", "float64"] = "float64",
    function: ScalarFunction | None = None,
    feature_normalisation: nn.Module | None = None,
) -> GlobalAveragePooling | GlobalCovariancePooling:
    """A pooling head: average pooling for ``gap``, covariance pooling for everything else.

    The arguments are those of `GlobalCovariancePooling`; average pooling ignores ``dim`` and ``spectral_dtype``.

    Raises:
        ValueError: for a wrong name or option, and for options that average pooling does not take.
    """
    if meta_layer != "gap":
        return GlobalCovariancePooling(
            in_channels, dim, meta_layer, meta_options, spectral_dtype, function, feature_normalisation
        )
    if meta_options:
        raise ValueError(f"meta_layer gap takes no options, got {', '.join(meta_options)}")
    if function is not None or feature_normalisation is not None:
        raise ValueError("meta_layer gap takes no covariance: leave out function and feature_normalisation")
    return GlobalAveragePooling(in_channels)

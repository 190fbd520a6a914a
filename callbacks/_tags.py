"""Log tags of quantities that are measured in each spectral layer of a model."""

from __future__ import annotations

from collections.abc import Sized


def suffix(layer: str, layers: Sized) -> str:
    """The end of a layer's tags: its name if the model has several layers, nothing if it has one."""
    if len(layers) == 1:
        return ""
    return f"/{layer}"

"""Which layers of a model decompose covariances: what the monitors look at."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from torch import nn

from app.spectral import FailureCounts


def spectral_layers(model: nn.Module) -> dict[str, Any]:
    """The modules of a model that work on eigenvalues, by name: those that count failures of decompositions.

    Global average pooling (the meta-layer ``gap``) counts too, but has nothing to count, and is left out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "counts", None), FailureCounts) and getattr(module, "meta_layer", None) != "gap"
    }


def suffix(layer: str, layers: Sized) -> str:
    """What the tags of a layer end in: its name, where the model has more than one."""
    return f"/{layer}" if len(layers) > 1 else ""

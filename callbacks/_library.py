"""The names that the callbacks use from the spectral core and the layers, imported from wherever these are installed.

This folder is a package in two places. In the checkout it is `callbacks`, beside `app`. In the installed package it is
`covpool.callbacks`, beside `covpool.layers` and `covpool.spectral`, and there is no `app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

# A package within another one has a dot in its name. Type checkers read the checkout.
if TYPE_CHECKING or "." not in (__package__ or ""):
    from app.layers import SpectralLayer, original_weight, spectral_layers, treatment_of
    from app.spectral import FailureCounts
else:
    from ..layers import SpectralLayer, original_weight, spectral_layers, treatment_of
    from ..spectral import FailureCounts

__all__ = ["FailureCounts", "SpectralLayer", "original_weight", "spectral_layers", "treatment_of"]

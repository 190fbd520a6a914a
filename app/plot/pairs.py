"""The gradient factors D and K of each layer for pairs of eigenvalues.

Symbols: l_i >= l_j a pair of eigenvalues, x = l_j / l_i their ratio, t = 1 - x. The trace of the covariance is 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from app.spectral import METHODS, SpectralFunction, SquareRoot
from app.spectral.pade import pade_value, taylor_value

LIMIT, DEGREE = 1e10, 100
"""T of svd-trunc and K of svd-taylor and svd-pade: the papers' values, and the defaults of the layers."""


def gaps(points: int = 1500) -> Tensor:
    """The horizontal axis: t from below 1 (l_j > 0) down to 1e-18, even in its logarithm, float64 ``(points,)``."""
    return torch.logspace(-0.01, -18, points, dtype=torch.float64)


def factors(name: str, eigenvalue: float, t: Tensor) -> Tensor:
    """D_ij of a layer for the pairs l_i = eigenvalue, l_j = l_i (1 - t), as its float64 code computes it."""
    function = SpectralFunction(SquareRoot(), METHODS[name]())
    a = torch.full_like(t, eigenvalue)
    return function.method.rule(function.backward_function, a, a * (1 - t))


def stand_ins(eigenvalue: float, t: Tensor) -> dict[str, Tensor]:
    """K_ij, the stand-ins for 1 / (l_i - l_j), of the layers that have one (Song et al., ICCV 2021, table 7)."""
    svd, x = 1 / (eigenvalue * t), 1 - t
    return {
        "mpn-cov": svd,
        "svd-pade": pade_value(x, DEGREE) / eigenvalue,
        "svd-taylor": taylor_value(x, DEGREE) / eigenvalue,
        "svd-trunc": svd.clamp_max(LIMIT),
    }

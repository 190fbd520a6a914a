"""The layers that are timed against each other: every spectral method, and two more ways to run isqrt-cov.

Shapes: B batch, d channels, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from app.spectral import METHODS, covariance_sqrt

PRODUCTS, UNROLLED = "isqrt-cov (products)", "isqrt-cov (unrolled)"

Layer = Callable[[Tensor], Tensor]
"""From features ``(B, d, N)`` to ``(B, d, d)``."""


def contestants() -> dict[str, Layer]:
    """All layers by name, including methods that were registered before the call."""
    layers: dict[str, Layer] = {name: partial(covariance_sqrt, method=name) for name in METHODS}
    layers[PRODUCTS] = partial(covariance_sqrt, method="isqrt-cov", route="products")
    layers[UNROLLED] = unrolled_isqrt_cov
    return layers


def unrolled_isqrt_cov(X: Tensor, iterations: int = 5) -> Tensor:
    """The baseline: Newton-Schulz in float64 under plain autograd (Song et al., ICCV 2021, eq. 7 to 9).

    It takes the usual shortcuts: the first step needs no product with Z = I, and the last computes no Z.

    Args:
        X: features ``(B, d, N)``.
        iterations: number of steps, at least 2.
    """
    Y = X.double()
    Y = Y - Y.mean(-1, keepdim=True)
    P = Y @ Y.mT / X.shape[-1]
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    A = P / trace
    three = 3 * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Z = 0.5 * (three - A)
    Y = A @ Z
    for _ in range(iterations - 2):
        W = 0.5 * (three - Z @ Y)
        Y, Z = Y @ W, W @ Z
    Y = 0.5 * Y @ (three - Z @ Y)
    return (Y * trace.sqrt()).to(X.dtype)

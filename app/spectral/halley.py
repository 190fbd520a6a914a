"""The step of Halley's iteration, ``w(m) = (3 + m) / (1 + 3 m)`` (`iterations`).

It converges cubically, where Newton-Schulz converges quadratically: the square root of a small eigenvalue triples at
each step, where Newton-Schulz multiplies it by 3/2. The same happens to round-off in the null space of a covariance,
unless an eigenbasis keeps it apart: by products the spectral part needs float64. A step costs the solution of a linear
system, whose condition number is 4 at most.

Gu, Qiao, Li, Li ("Revitalizing SVD for global covariance pooling: Halley's method to overcome
over-flattening", NeurIPS 2025) use it in place of the square root of the eigenvalues. Their text was not available to
us; this is the textbook form of the iteration (Higham, "Functions of Matrices", SIAM 2008, sec. 5.3 and 6.4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .iterations import Step


@dataclass(frozen=True)
class HalleyStep(Step):
    """``w(m) = (3 + m) / (1 + 3 m)``; by the quotient rule ``w[a, b] = -8 m[a, b] / ((1 + 3 m_a) (1 + 3 m_b))``."""

    def value(self, m: Tensor) -> Tensor:
        return (3 + m) / (1 + 3 * m)

    def slope(self, m_a: Tensor, m_b: Tensor) -> Tensor:
        return -8 / ((1 + 3 * m_a) * (1 + 3 * m_b))

    def matrix(self, M: Tensor) -> Tensor:
        return torch.linalg.solve(_denominator(M), _plus(M, 3))

    def product_tangent(self, V: Tensor | None, dV: Tensor | None, M: Tensor, W: Tensor, dM: Tensor) -> Tensor:
        dW = _tangent(M, W, dM)
        if V is None or dV is None:
            return dW
        return (dV @ W).baddbmm_(V, dW)

    def steering_tangent(self, dM: Tensor, M: Tensor, W: Tensor) -> Tensor:
        """The tangent of ``W M W``, which is M W^2: dW M W + (dW M W)^T + W dM W."""
        T = _tangent(M, W, dM) @ (M @ W)
        return (W @ dM @ W).add_(T).add_(T.mT)


def _tangent(M: Tensor, W: Tensor, dM: Tensor) -> Tensor:
    """The tangent of W, from ``(I + 3 M) W = 3 I + M``."""
    return torch.linalg.solve(_denominator(M), dM - 3 * dM @ W)


def _denominator(M: Tensor) -> Tensor:
    return _plus(3 * M, 1)


def _plus(M: Tensor, number: float) -> Tensor:
    """``M + number I``."""
    M = M.clone()
    M.diagonal(dim1=-2, dim2=-1).add_(number)
    return M

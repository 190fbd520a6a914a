"""The steps of the Newton-Schulz iteration, ``w(m) = a - b m`` (`iterations`): classic and minimax coefficients.

Classic: a = 3/2, b = 1/2 at every step (Song et al., ICCV 2021, eq. 7).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .iterations import Step

Coefficients = tuple[tuple[float, float], ...]
"""One pair (a_k, b_k) for each step."""

MOST_STEPS = 1000
"""Largest number of iterations or degree of a series. An option may come from the checkpoint of somebody else, and a
billion steps would never end; the iterations have converged to round-off after some tens of steps."""


def classic(iterations: int) -> Coefficients:
    """(3/2, 1/2) at every step (eq. 7)."""
    return ((1.5, 0.5),) * positive_integer("iterations", iterations)


def positive_integer(name: str, value: int, maximum: int = MOST_STEPS) -> int:
    """Check that an option is a positive whole number, and return it.

    Raises:
        ValueError: for anything but a whole number from 1 to the maximum.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")
    return value


def minimax(iterations: int, floor: float = 1e-3) -> Coefficients:
    """The pairs that bring every singular value of ``[sqrt(floor), 1]`` closest to 1 at each step.

    The odd cubic p(s) = a s - b s^3 with the smallest max |1 - p| on [l, u] equioscillates between its value at the
    ends, k l - l^3 times b, and its peak (2/3) k sqrt(k/3) times b, with k = l^2 + l u + u^2: so
    b = 2 / (peak + end), a = b k, and the next interval is 1 -+ (peak - end) / (peak + end).

    Args:
        iterations: number of steps.
        floor: smallest eigenvalue of A that counts, in (0, 1).
    """
    if not isinstance(floor, int | float) or not 0 < floor < 1:
        raise ValueError(f"floor must lie between 0 and 1, got {floor}")
    low, high = floor**0.5, 1.0
    pairs = []
    for _ in classic(iterations):
        k = low * low + low * high + high * high
        peak, end = 2 / 3 * k * (k / 3) ** 0.5, k * low - low**3
        b = 2 / (peak + end)
        pairs.append((b * k, b))
        low, high = 1 - (peak - end) / (peak + end), 1 + (peak - end) / (peak + end)
    return tuple(pairs)


@dataclass(frozen=True)
class CubicStep(Step):
    """``w(m) = a - b m``, so that y w is a cubic in the square root of m.

    Attributes:
        a: the constant.
        b: the factor of m.
    """

    a: float
    b: float

    def value(self, m: Tensor) -> Tensor:
        return self.a - self.b * m

    def slope(self, m_a: Tensor, m_b: Tensor) -> float:
        return -self.b

    def matrix(self, M: Tensor) -> Tensor:
        W = -self.b * M
        W.diagonal(dim1=-2, dim2=-1).add_(self.a)
        return W

    def product_tangent(self, V: Tensor | None, dV: Tensor | None, M: Tensor, W: Tensor, dM: Tensor) -> Tensor:
        if V is None or dV is None:
            return -self.b * dM
        return (dV @ W).baddbmm_(V, dM, alpha=-self.b)

    def steering_tangent(self, dM: Tensor, M: Tensor, W: Tensor) -> Tensor:
        """The tangent of ``M (a I - b M)^2 = a^2 M - 2 a b M^2 + b^2 M^3``, in place of dM.

        A symmetric tangent allows d(M^2) = S + S^T, d(M^3) = S M + (S M)^T + M S with S = dM M: three products, not
        five.
        """
        a, b = self.a, self.b
        S = dM @ M
        T = torch.baddbmm(S, S, M, beta=-2 * a * b, alpha=b * b)
        return dM.baddbmm_(M, S, beta=a * a, alpha=b * b).add_(T).add_(T.mT)


def cubic_steps(coefficients: Coefficients) -> tuple[CubicStep, ...]:
    """The steps with these coefficients."""
    return tuple(CubicStep(a, b) for a, b in coefficients)

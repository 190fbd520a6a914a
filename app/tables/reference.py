"""The square root of a covariance and its gradient in extended precision.

Shapes: d channels, N positions, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mpmath
import numpy as np

from app.spectral.newton_schulz import Coefficients

DIGITS = 50
"""Decimal digits of the references: three times those of a double."""


@dataclass(frozen=True)
class Reference:
    """Square root of a covariance and its gradient in extended precision, from features of any rank.

    With Y the centred features over sqrt(N), ``Y = U diag(s) W^T`` on its range and ``M = U^T G U``, the gradient is

        2 [U (D * M) + (G U - U M) diag(D_0)] diag(s) W^T / sqrt(N)

    Attributes:
        X: features ``(d, N)``, float64.
        G: upstream gradient ``(d, d)``, float64, symmetric.
    """

    X: np.ndarray
    G: np.ndarray

    def exact(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact square root ``(d, d)`` and its gradient ``(d, N)``, rounded to float64."""
        s = self.factors[0]
        return self._root(s), self._gradient(1 / (s[:, None] + s), 1 / s)

    def iteration(self, steps: Coefficients) -> tuple[np.ndarray, np.ndarray]:
        """The square root and its gradient by the Newton-Schulz iteration, with the coefficients of the layer."""
        s, M = self.factors[0], self._rotated[0]
        trace = (s * s).sum()
        x = s * s / trace
        # Divided differences are plain quotients here. Arguments are spread by h, so that equal ones have one too. That
        # costs half of the digits, and the error is about h times the second derivative.
        h = mpmath.mpf(10) ** -(DIGITS // 2)
        phi = _scalar_iteration(steps, x)
        above, below = _scalar_iteration(steps, x + h), _scalar_iteration(steps, x - h)
        D = (above[:, None] - below) / (x[:, None] - x + 2 * h) / mpmath.sqrt(trace)
        # Q = tr^(1/2) phi(P / tr): the part that moves with the trace adds a multiple of the identity to dL/dP
        in_trace = M.diagonal() @ (phi / (2 * mpmath.sqrt(trace)) - D.diagonal() * x)
        gradient = self._gradient(D, phi / x / mpmath.sqrt(trace), in_trace)
        return self._root(mpmath.sqrt(trace) * phi), gradient

    def _root(self, values: np.ndarray) -> np.ndarray:
        U = self.factors[1]
        return _rounded(U * values @ U.T)

    def _gradient(self, D: np.ndarray, D_null: np.ndarray, in_trace: Any = 0) -> np.ndarray:
        s, U, W = self.factors
        M, rest = self._rotated
        core = U @ (D * M) + rest * D_null + U * in_trace
        # W has orthonormal columns, so the last product is safe in float64
        return 2 * _rounded(core * s) @ _rounded(W).T * self.X.shape[1] ** -0.5

    @cached_property
    def factors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The singular values s ``(r,)``, ascending, U ``(d, r)`` and W ``(N, r)``: arrays of mpmath numbers."""
        X = _extended(self.X)
        d, N = X.shape
        Y = (X - X.sum(1, keepdims=True) / N) / mpmath.sqrt(N)
        if d > N:
            Y = Y.T  # the smaller side is decomposed
        values, vectors = mpmath.eigsy(mpmath.matrix((Y @ Y.T).tolist()))
        eigenvalues = np.array(values.tolist(), dtype=object).ravel()
        V = np.array(vectors.tolist(), dtype=object)
        in_range = eigenvalues > eigenvalues[-1] * mpmath.mpf(10) ** (15 - DIGITS)  # the remaining ones are round-off
        s, V = np.vectorize(mpmath.sqrt, otypes=[object])(eigenvalues[in_range]), V[:, in_range]
        other = Y.T @ V / s
        if d > N:
            return s, other, V
        return s, V, other

    @cached_property
    def _rotated(self) -> tuple[np.ndarray, np.ndarray]:
        """``M = U^T G U``, ``(r, r)``, and ``G U - U M``, ``(d, r)``: range with range, and null space with range."""
        U = self.factors[1]
        GU = _extended(self.G) @ U
        M = U.T @ GU
        return M, GU - U @ M


def _extended(a: np.ndarray) -> np.ndarray:
    return np.vectorize(mpmath.mpf, otypes=[object])(a)


def _scalar_iteration(steps: Coefficients, x: np.ndarray) -> np.ndarray:
    y, z = x, x * 0 + 1
    for a, b in steps:
        w = a - b * z * y
        y, z = y * w, w * z
    return y


def _rounded(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64)

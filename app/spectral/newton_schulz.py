r"""The Newton-Schulz iteration for A^(1/2) and A^(-1/2), classic and minimax, by its spectrum and by products alone.

    W_k = a_k I - b_k Z_k Y_k,   Y_(k+1) = Y_k W_k,   Z_(k+1) = W_k Z_k,   Y_0 = A,   Z_0 = I

Classic: a = 3/2, b = 1/2 (Song et al., ICCV 2021, eq. 7). A is the covariance divided by its trace (eq. 8), so its
eigenvalues lie in [0, 1]; Y tends to A^(1/2) and Z to A^(-1/2). All iterates are polynomials in A, hence

- `NewtonSchulz` is a scalar function like any other, to be used with an eigendecomposition, and
- `newton_schulz` needs no decomposition, only products: it cannot fail to converge.

Shapes: B batch, d channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .once_differentiable import graph_anchor, once_differentiable
from .scalar_functions import ScalarFunction

Coefficients = tuple[tuple[float, float], ...]
"""One pair (a_k, b_k) for each step."""

MOST_STEPS = 1000
"""Largest number of iterations or degree of a series. An option may come from the checkpoint of somebody else, and a
billion steps would never end; the iterations have converged to round-off after some tens of steps."""


def classic(iterations: int) -> Coefficients:
    """(3/2, 1/2) at every step (eq. 7)."""
    return ((1.5, 0.5),) * positive_integer("iterations", iterations)


def positive_integer(name: str, value: int, maximum: int = MOST_STEPS) -> int:
    """The value of an option, checked.

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
class NewtonSchulz(ScalarFunction):
    """The iteration as a scalar function of an eigenvalue l of A: w = a - b z y,  y <- y w,  z <- z w.

    Its divided differences obey the product rule, (x y)[i,j] = x_i y[i,j] + x[i,j] y_j, without any quotient:

        w[i,j] = -b (z_i y[i,j] + z[i,j] y_j)
        y[i,j] <- y_i w[i,j] + y[i,j] w_j,      z[i,j] <- w_i z[i,j] + w[i,j] z_j

    from y[i,j] = 1, z[i,j] = 0. (The shorter recurrence with y = l z put in is unstable, as the uncoupled
    Newton-Schulz iteration is: it loses a factor l_i / l_j at every step.)

    Attributes:
        coefficients: the steps, from `classic` or `minimax`.
        inverse: z, the inverse square root, instead of y.
    """

    coefficients: Coefficients
    inverse: bool = False

    @property
    def trace_degree(self) -> float:
        """The degree of homogeneity h of the function that is approximated: f(c l) = c^h f(l)."""
        return _degree(self.inverse)

    def value(self, a: Tensor) -> Tensor:
        return self._iterates(a)[1][int(self.inverse)]

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        # in place: yy, zz and ww are (B, r, r) on the hot path, everything else is (B, r)
        yy = torch.ones_like(a + b)
        zz = torch.zeros_like(yy)
        for (_, beta), (y_a, z_a, w_a), (y_b, z_b, w_b) in zip(
            self.coefficients, self._iterates(a)[0], self._iterates(b)[0], strict=True
        ):
            ww = (yy * (-beta * z_a)).addcmul_(zz, -beta * y_b)
            yy.mul_(w_b).addcmul_(ww, y_a)
            zz.mul_(w_a).addcmul_(ww, z_b)
        return (yy, zz)[int(self.inverse)]

    def _iterates(self, a: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor]], tuple[Tensor, Tensor]]:
        """(y, z, w) at the start of every step, and (y, z) of the result."""
        y, z, steps = a, torch.ones_like(a), []
        for alpha, beta in self.coefficients:
            w = alpha - beta * z * y
            steps.append((y, z, w))
            y, z = y * w, z * w
        return steps, (y, z)


def newton_schulz(P: Tensor, coefficients: Coefficients, *, inverse: bool = False) -> Tensor:
    """Square root (or inverse square root) of P by products alone, scaled by the trace (eq. 8 and 9).

    Args:
        P: symmetric positive semi-definite ``(B, d, d)``, float32 or float64.
        coefficients: the steps, from `classic` or `minimax`.
        inverse: return the inverse square root.

    Returns:
        ``(B, d, d)``; differentiable once.
    """
    return _NewtonSchulzProducts.apply(P, graph_anchor(P), coefficients, inverse)


class _NewtonSchulzProducts(torch.autograd.Function):
    """Forward and backward with few products and half the saved tensors of the unrolled iteration.

    All iterates commute, so one sequence m = z y steers both: m <- m w^2 with w = a - b m, and v <- v w, where v is y
    or z by its start. The derivative of a polynomial of A is self-adjoint, so the backward pass is the *forward*
    derivative in the direction of the upstream gradient; it needs A, the m_k and the result (v is rebuilt), and a
    symmetric tangent allows d(m^2) = S + S^T, d(m^3) = S m + (S m)^T + m S with S = dm m: three products, not five.
    """

    @staticmethod
    def forward(ctx: Any, P: Tensor, anchor: Tensor, coefficients: Coefficients, inverse: bool) -> Tensor:
        trace = _trace(P)
        trace = torch.where(trace > 0, trace, 1)
        A = P / trace
        m_steps = [A]
        v = None if inverse else A
        for k, (a, b) in enumerate(coefficients):
            w = _step(m_steps[k], a, b)
            v = _times(v, w)
            if k + 1 < len(coefficients):
                m_steps.append(m_steps[k] @ (w @ w))
        assert v is not None
        Q = v.mul_(trace ** _degree(inverse))
        ctx.coefficients, ctx.inverse = coefficients, inverse
        ctx.save_for_backward(anchor, trace, Q, *m_steps)
        return Q

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None]:
        anchor, trace, Q, *m_steps = ctx.saved_tensors  # read once: saved-tensor hooks may recompute them
        with torch.autocast(G.device.type, enabled=False), torch.no_grad():
            gradient = _NewtonSchulzProducts._gradient(ctx, G, trace, Q, m_steps)
        return once_differentiable(gradient, anchor), None, None, None

    @staticmethod
    def _gradient(ctx: Any, G: Tensor, trace: Tensor, Q: Tensor, m_steps: list[Tensor]) -> Tensor:
        G = (G + G.mT).mul_(0.5)
        v: Tensor | None = None
        dv: Tensor | None = None
        if not ctx.inverse:  # the inverse starts from the identity, whose tangent is zero
            v, dv = m_steps[0], G.clone()
        dm = G.clone()
        for k, (m, (a, b)) in enumerate(zip(m_steps, ctx.coefficients, strict=True)):
            w = _step(m, a, b)
            dv = _product_tangent(v, dv, w, dm, b)
            if k + 1 < len(m_steps):
                v = _times(v, w)
                dm = _steering_tangent(dm, m, a, b)
        assert dv is not None
        # Q = tr^h phi(P / tr):  dP = tr^(h-1) L[G] + (h <G, Q> / tr - tr^(h-1) <L[G], A>) I, eq. (10) for h = 1/2
        degree = _degree(ctx.inverse)
        dv.mul_(trace ** (degree - 1))
        in_trace = degree * (G * Q).sum((-2, -1)) / trace[:, 0, 0] - (dv * m_steps[0]).sum((-2, -1))
        dv.diagonal(dim1=-2, dim2=-1).add_(in_trace.unsqueeze(-1))
        return dv


def _degree(inverse: bool) -> float:
    return -0.5 if inverse else 0.5


def _times(v: Tensor | None, w: Tensor) -> Tensor:
    """``v w``; v None is the identity."""
    return w if v is None else v @ w


def _step(m: Tensor, a: float, b: float) -> Tensor:
    """``w = a I - b m``."""
    w = -b * m
    w.diagonal(dim1=-2, dim2=-1).add_(a)
    return w


def _product_tangent(v: Tensor | None, dv: Tensor | None, w: Tensor, dm: Tensor, b: float) -> Tensor:
    """The tangent ``dv w - b v dm`` of v w; v None is the identity, with dv = 0."""
    if v is None or dv is None:
        return -b * dm
    return (dv @ w).baddbmm_(v, dm, alpha=-b)


def _steering_tangent(dm: Tensor, m: Tensor, a: float, b: float) -> Tensor:
    """The tangent of ``m (a I - b m)^2 = a^2 m - 2 a b m^2 + b^2 m^3``, in place of dm."""
    S = dm @ m
    T = torch.baddbmm(S, S, m, beta=-2 * a * b, alpha=b * b)
    return dm.baddbmm_(m, S, beta=a * a, alpha=b * b).add_(T).add_(T.mT)


def _trace(P: Tensor) -> Tensor:
    return P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]

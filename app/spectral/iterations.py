r"""Coupled iterations for A^(1/2) and A^(-1/2), on the spectrum or without a decomposition.

    M_k = Z_k Y_k,   W_k = step of M_k,   Y_(k+1) = Y_k W_k,   Z_(k+1) = W_k Z_k,   Y_0 = A,   Z_0 = I

A is the covariance divided by its trace, so its eigenvalues lie in [0, 1]; Y tends to A^(1/2) and Z to A^(-1/2). All
iterates are functions of A alone. An `Iteration` is therefore a scalar function like any other, to be used with an
eigendecomposition; `iterate` computes the same by matrix products (and solves), which cannot fail to converge.

Shapes: B batch, d channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .once_differentiable import graph_anchor, once_differentiable
from .scalar_functions import ScalarFunction


class Step(ABC):
    """One step w(m) of a coupled iteration, for eigenvalues and for matrices."""

    @abstractmethod
    def value(self, m: Tensor) -> Tensor:
        """w(m) of eigenvalues."""

    @abstractmethod
    def slope(self, m_a: Tensor, m_b: Tensor) -> Tensor | float:
        """The divided difference w[a, b] over m[a, b]: a number or a tensor that broadcasts."""

    @abstractmethod
    def matrix(self, M: Tensor) -> Tensor:
        """W of matrices M ``(B, d, d)``."""

    @abstractmethod
    def product_tangent(self, V: Tensor | None, dV: Tensor | None, M: Tensor, W: Tensor, dM: Tensor) -> Tensor:
        """The tangent ``dV W + V dW`` of V W, where V = None stands for the identity, with dV = 0."""

    @abstractmethod
    def steering_tangent(self, dM: Tensor, M: Tensor, W: Tensor) -> Tensor:
        """The tangent of ``M W^2``, which may replace dM in place."""


@dataclass(frozen=True)
class Iteration(ScalarFunction):
    """A coupled iteration as a scalar function of an eigenvalue l of A: m = z y,  w = w(m),  y <- y w,  z <- z w.

    Its divided differences obey the product rule, (x y)[i,j] = x_i y[i,j] + x[i,j] y_j, without any quotient of
    differences:

        m[i,j] = z_i y[i,j] + z[i,j] y_j,       w[i,j] = slope(m_i, m_j) m[i,j]
        y[i,j] <- y_i w[i,j] + y[i,j] w_j,      z[i,j] <- w_i z[i,j] + w[i,j] z_j

    from y[i,j] = 1, z[i,j] = 0. (The shorter recurrence that substitutes y = l z is unstable, like the uncoupled
    iteration: it loses a factor l_i / l_j at every step.)

    Attributes:
        steps: the steps.
        inverse: z, the inverse square root, instead of y.
    """

    steps: tuple[Step, ...]
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
        of_a, of_b = self._iterates(a)[0], self._iterates(b)[0]
        for step, (y_a, z_a, m_a, w_a), (y_b, z_b, m_b, w_b) in zip(self.steps, of_a, of_b, strict=True):
            ww = (yy * z_a).addcmul_(zz, y_b).mul_(step.slope(m_a, m_b))
            yy.mul_(w_b).addcmul_(ww, y_a)
            zz.mul_(w_a).addcmul_(ww, z_b)
        return (yy, zz)[int(self.inverse)]

    def _iterates(self, a: Tensor) -> tuple[list[tuple[Tensor, Tensor, Tensor, Tensor]], tuple[Tensor, Tensor]]:
        """(y, z, m, w) at every step, and (y, z) of the result."""
        y, z, iterates = a, torch.ones_like(a), []
        for step in self.steps:
            m = z * y
            w = step.value(m)
            iterates.append((y, z, m, w))
            y, z = y * w, z * w
        return iterates, (y, z)


def iterate(P: Tensor, steps: tuple[Step, ...], *, inverse: bool = False) -> Tensor:
    """Square root (or inverse square root) of P without a decomposition, scaled by the trace (ICCV 2021, eq. 8 and 9).

    Args:
        P: symmetric positive semi-definite ``(B, d, d)``, float32 or float64.
        steps: the steps.
        inverse: return the inverse square root.

    Returns:
        ``(B, d, d)``; differentiable once.
    """
    return _IterationOfMatrices.apply(P, graph_anchor(P), steps, inverse)


class _IterationOfMatrices(torch.autograd.Function):
    """Forward and backward with few products and half the saved tensors of the unrolled iteration.

    All iterates commute, so one sequence m = z y steers both: m <- m w^2, and v <- v w, where v is y or z depending on
    its initial value. The derivative of a function of A is self-adjoint, so the backward pass is the *forward*
    derivative in the direction of the upstream gradient; it needs A, the m_k and the result (v is rebuilt).
    """

    @staticmethod
    def forward(ctx: Any, P: Tensor, anchor: Tensor, steps: tuple[Step, ...], inverse: bool) -> Tensor:
        trace = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
        trace = torch.where(trace > 0, trace, 1)
        A = P / trace
        m_steps = [A]
        v = None if inverse else A
        for k, step in enumerate(steps):
            w = step.matrix(m_steps[k])
            v = _times(v, w)
            if k + 1 < len(steps):
                m_steps.append(m_steps[k] @ (w @ w))
        assert v is not None
        Q = v * trace ** _degree(inverse)
        ctx.steps, ctx.inverse = steps, inverse
        ctx.save_for_backward(anchor, trace, Q, *m_steps)
        return Q

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None]:
        anchor, trace, Q, *m_steps = ctx.saved_tensors  # read once: saved-tensor hooks may recompute them
        with torch.autocast(G.device.type, enabled=False), torch.no_grad():
            gradient = _IterationOfMatrices._gradient(ctx, G, trace, Q, m_steps)
        return once_differentiable(gradient, anchor), None, None, None

    @staticmethod
    def _gradient(ctx: Any, G: Tensor, trace: Tensor, Q: Tensor, m_steps: list[Tensor]) -> Tensor:
        G = (G + G.mT).mul_(0.5)
        v: Tensor | None = None
        dv: Tensor | None = None
        if not ctx.inverse:  # the inverse starts from the identity, whose tangent is zero
            v, dv = m_steps[0], G.clone()
        dm = G.clone()
        for k, (m, step) in enumerate(zip(m_steps, ctx.steps, strict=True)):
            w = step.matrix(m)
            dv = step.product_tangent(v, dv, m, w, dm)
            if k + 1 < len(m_steps):
                v = _times(v, w)
                dm = step.steering_tangent(dm, m, w)
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
    """``v w``, where v = None stands for the identity."""
    return w if v is None else v @ w

r"""The forward and backward pass that all spectral layers share.

    forward:   Q = U f(diag(l)) U^T
    backward:  dL/dP = U (D * M) U^T,   M = U^T (G + G^T)/2 U

D comes from the gradient rule of the method (`methods`). Decompositions are computed beforehand, without autograd, and
passed in as constants, so the whole derivative is one Hadamard product.

Shapes: B batch, d channels, N positions, r = min(d, N) eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .methods import Method, SVDExact
from .once_differentiable import once_differentiable
from .scalar_functions import ScalarFunction, SquareRoot


@dataclass(frozen=True)
class SpectralFunction:
    """A scalar function and the method that evaluates and differentiates it.

    Attributes:
        function: f.
        method: the method.

    Raises:
        ValueError: if the method is not defined for f.
    """

    function: ScalarFunction
    method: Method

    def __post_init__(self) -> None:
        _ = self.forward_function, self.backward_function

    @cached_property
    def forward_function(self) -> ScalarFunction:
        """The scalar function of the forward pass."""
        return self.method.forward_function(self.function)

    @cached_property
    def backward_function(self) -> ScalarFunction:
        """The scalar function of the backward pass."""
        return self.method.backward_function(self.function)

    @property
    def twice_differentiable(self) -> bool:
        """Whether the backward pass can itself be differentiated."""
        return self == SpectralFunction(SquareRoot(), SVDExact())

    def values(self, eigenvalues: Tensor) -> Tensor:
        """``f(l)``, (B, r)."""
        f, eigenvalues = self.forward_function, self.method.kept(eigenvalues)
        if f.trace_degree is None:
            return f.value(eigenvalues)
        scale = _trace_scale(eigenvalues)
        return f.value(eigenvalues / scale).mul_(scale**f.trace_degree)

    def differences(self, eigenvalues: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The factors of the backward pass.

        Returns:
            D ``(B, r, r)``; its column for an eigenvalue of zero, D_i0 ``(B, r)``, for pairs of range and null space;
            and for functions of P / tr(P) the weights t ``(B, r)`` of the trace term ``(sum_i t_i M_ii) I``.
        """
        f, eigenvalues = self.backward_function, self.method.kept(eigenvalues)
        if f.trace_degree is None:
            return *self._pairs(f, eigenvalues), None
        scale = _trace_scale(eigenvalues)
        x = eigenvalues / scale
        D, D_null = self._pairs(f, x)
        # Q = tr^h phi(l / tr) with h = +-1/2; t = d Q_ii / d tr
        power = scale ** (f.trace_degree - 1)
        t = (f.trace_degree * f.value(x) - D.diagonal(dim1=-2, dim2=-1) * x).mul_(power)
        return D.mul_(power.unsqueeze(-1)), D_null.mul_(power), t

    def _pairs(self, f: ScalarFunction, a: Tensor) -> tuple[Tensor, Tensor]:
        D = self.method.rule(f, a.unsqueeze(-1), a.unsqueeze(-2))
        derivative = f.divided_difference(a, a)
        D.diagonal(dim1=-2, dim2=-1).copy_(derivative)
        return D, self.method.rule(f, a, torch.zeros_like(a))


def _trace_scale(eigenvalues: Tensor) -> Tensor:
    trace = eigenvalues.sum(-1, keepdim=True)
    return torch.where(trace > 0, trace, 1)


class MatrixFunction(torch.autograd.Function):
    """``f(P)`` from the decomposition of P. Saves the eigenvectors and eigenvalues, and for svd-exact also Q.

    The exact square root can be differentiated twice where P is positive definite.
    """

    @staticmethod
    def forward(
        ctx: Any, P: Tensor, anchor: Tensor, eigenvalues: Tensor, U: Tensor, function: SpectralFunction
    ) -> Tensor:
        Q = (U * function.values(eigenvalues).unsqueeze(-2)) @ U.mT
        ctx.function = function
        # the second derivative is computed from Q
        ctx.save_for_backward(eigenvalues, U, Q if function.twice_differentiable else anchor)
        return Q

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None, None]:
        eigenvalues, U, last = ctx.saved_tensors
        with torch.autocast(G.device.type, enabled=False):
            if ctx.function.twice_differentiable and torch.is_grad_enabled():
                return _SquareRootGradient.apply(last, G, eigenvalues, U), None, None, None, None
            with torch.no_grad():
                D, _, t = ctx.function.differences(eigenvalues)
                gradient = _gradient_of_matrix(G, U, D, t)
        return once_differentiable(gradient, last), None, None, None, None


def _gradient_of_matrix(G: Tensor, U: Tensor, D: Tensor, t: Tensor | None) -> Tensor:
    """``U (D * M) U^T``, plus the trace term if there is one."""
    M = U.mT @ (G @ U)
    M = (M + M.mT).mul_(0.5)
    dP = U @ D.mul(M) @ U.mT
    if t is not None:
        dP.diagonal(dim1=-2, dim2=-1).add_(_trace_term(t, M).unsqueeze(-1))
    return dP


def _trace_term(t: Tensor, M: Tensor) -> Tensor:
    return (t * M.diagonal(dim1=-2, dim2=-1)).sum(-1)


class _SquareRootGradient(torch.autograd.Function):
    """S, the solution of ``Q S + S Q = sym(G)``: the gradient of the exact square root, itself differentiable.

    Differentiating the equation gives back the same equation, so its derivative needs nothing new: with T the
    solution for the upstream gradient H, ``dL/dG = T`` and ``dL/dQ = -(T S + S T)``.
    """

    @staticmethod
    def forward(ctx: Any, Q: Tensor, G: Tensor, eigenvalues: Tensor, U: Tensor) -> Tensor:
        D = SquareRoot().divided_difference(eigenvalues.unsqueeze(-1), eigenvalues.unsqueeze(-2))
        S = _gradient_of_matrix(G, U, D, None)
        ctx.save_for_backward(Q, S, eigenvalues, U)
        return S

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[Tensor, Tensor, None, None]:
        Q, S, eigenvalues, U = ctx.saved_tensors
        with torch.autocast(H.device.type, enabled=False):
            T = _SquareRootGradient.apply(Q, H, eigenvalues, U)
            TS = T @ S
            return -(TS + TS.mT), T, None, None


class CovarianceFunction(torch.autograd.Function):
    r"""``f(Y Y^T)`` from features, decomposed on the cheaper side. Y are the centred features over sqrt(N).

    N >= d: ``Y Y^T = U diag(l) U^T``; the gradient is ``2 dL/dP Y``.

    N < d: ``Y^T Y = W diag(l) W^T`` and ``U = Y W diag(1/s)``, s = sqrt(l), on the numerically nonzero part. The
    gradient ``2 dL/dP Y`` is then, with D_i0 for the pairs (range, null space),

        2 [U (D * M - M diag(D_0)) + G U diag(D_0)] diag(s) W^T

    because ``U^T Y = diag(s) W^T``. Y need not be kept. Pairs within the null space meet no feature and drop out.

    The forward pass saves W, U and l, or Y, U and l. The gradient is for the uncentred features: its rows already
    have mean zero, as those of Y do.
    """

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, anchor: Tensor, Y: Tensor, eigenvalues: Tensor, V: Tensor, function: SpectralFunction
    ) -> Tensor:
        d, N = Y.shape[-2:]
        ctx.function, ctx.small = function, d > N
        ctx.input_dtype = X.dtype
        values = function.values(eigenvalues)
        if not ctx.small:
            ctx.save_for_backward(eigenvalues, V, Y, anchor)
            return ((V * values.unsqueeze(-2)) @ V.mT).to(X.dtype)
        s = eigenvalues.sqrt()
        U = (Y @ V).mul_(torch.where(s > 0, 1 / s, 0).unsqueeze(-2))
        ctx.save_for_backward(eigenvalues, U, V, anchor)
        at_zero = function.values(torch.zeros_like(eigenvalues[..., :1]))
        # The null space, of at least d - r dimensions, has no eigenvectors here: its projector is I - U U^T.
        Q = (U * (values - at_zero).unsqueeze(-2)) @ U.mT
        Q.diagonal(dim1=-2, dim2=-1).add_(at_zero)
        return Q.to(X.dtype)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        *saved, anchor = ctx.saved_tensors  # read once: saved-tensor hooks may recompute them
        with torch.autocast(G.device.type, enabled=False), torch.no_grad():
            gradient = CovarianceFunction._gradient(ctx, G, *saved)
        return once_differentiable(gradient, anchor), None, None, None, None, None

    @staticmethod
    def _gradient(ctx: Any, G: Tensor, eigenvalues: Tensor, U: Tensor, other: Tensor) -> Tensor:
        D, D_null, t = ctx.function.differences(eigenvalues)
        G = G.to(U.dtype)
        if ctx.small:
            GU = (G + G.mT) @ U  # twice the symmetric part: the factor 2 of 2 dL/dP Y
            M = U.mT @ GU
            core = D.sub_(D_null.unsqueeze(-2)).mul_(M)
            if t is not None:
                core.diagonal(dim1=-2, dim2=-1).add_(_trace_term(t, M).unsqueeze(-1))
            gradient = GU.mul_(D_null.unsqueeze(-2)).baddbmm_(U, core)
            dY = gradient.mul_(eigenvalues.sqrt().unsqueeze(-2)) @ other.mT
        else:
            dY = _gradient_of_matrix(G, U, D, t) @ other
            dY.mul_(2)
        return dY.mul_(dY.shape[-1] ** -0.5).to(ctx.input_dtype)


class Covariance(torch.autograd.Function):
    """``Y Y^T`` of the centred features over sqrt(N), ``(B, d, d)``; the gradient, with respect to X, is eq. (6)."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, anchor: Tensor, Y: Tensor) -> Tensor:
        ctx.input_dtype = X.dtype
        ctx.save_for_backward(Y, anchor)
        return Y @ Y.mT

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        Y, anchor = ctx.saved_tensors
        with torch.autocast(G.device.type, enabled=False), torch.no_grad():
            # (G + G^T) X I_bar, with I_bar = (I - 11^T/N) / N: the rows of Y have mean zero already
            gradient = ((G + G.mT) @ Y).mul_(Y.shape[-1] ** -0.5).to(ctx.input_dtype)
        return once_differentiable(gradient, anchor), None, None

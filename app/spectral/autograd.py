r"""The one autograd function of every spectral layer.

    forward:   Q = U f(diag(l)) U^T
    backward:  dL/dP = U (D * M) U^T,   M = U^T (G + G^T)/2 U

D comes from the layer's gradient rule (`app.spectral.gradients`). Decompositions are made before, without autograd,
and handed in: they are constants here, which is what makes one Hadamard product the whole derivative.

Shapes: B batch, d channels, N positions, r = min(d, N) eigenvalues.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from app.spectral.gradients import Rule, exact
from app.spectral.newton_schulz import NewtonSchulz
from app.spectral.once import once
from app.spectral.scalar_functions import ScalarFunction, SquareRoot


@dataclass(frozen=True)
class Method:
    """A spectral layer: which function goes forward, and what its gradient is made of.

    Attributes:
        function: f of the forward pass.
        rule: the gradient rule.
        backward_function: the function whose divided differences the rule sees; ``None``: the forward one.
        keep: keep only the largest eigenvalues, this many (SVD-TopN, eq. 11); ``None``: all.
    """

    function: ScalarFunction
    rule: Rule = exact
    backward_function: ScalarFunction | None = None
    keep: int | None = None

    def _kept(self, eigenvalues: Tensor) -> Tensor:
        """The eigenvalues ``(B, r)``, ascending, with those after the N-th largest zero."""
        if self.keep is None or self.keep >= eigenvalues.shape[-1]:
            return eigenvalues
        eigenvalues = eigenvalues.clone()
        eigenvalues[..., : eigenvalues.shape[-1] - self.keep] = 0
        return eigenvalues

    def values(self, eigenvalues: Tensor) -> Tensor:
        """``f(l)``, (B, r)."""
        f, eigenvalues = self.function, self._kept(eigenvalues)
        if isinstance(f, NewtonSchulz):
            scale = _trace_scale(eigenvalues)
            return f.value(eigenvalues / scale).mul_(scale**f.degree)
        return f.value(eigenvalues)

    def differences(self, eigenvalues: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the backward pass multiplies with.

        Returns:
            D ``(B, r, r)``; its column for an eigenvalue of zero, D_i0 ``(B, r)``, which pairs range and null space;
            and for functions of P / tr(P) the weights t ``(B, r)`` of the trace term ``(sum_i t_i M_ii) I``.
        """
        f, eigenvalues = self.backward_function or self.function, self._kept(eigenvalues)
        if not isinstance(f, NewtonSchulz):
            return *self._pairs(f, eigenvalues), None
        scale = _trace_scale(eigenvalues)
        x = eigenvalues / scale
        D, D_null = self._pairs(f, x)
        # Q = tr^h phi(l / tr) with h = +-1/2; t = d Q_ii / d tr
        t = (f.degree * f.value(x) - D.diagonal(dim1=-2, dim2=-1) * x).mul_(scale ** (f.degree - 1))
        power = scale ** (f.degree - 1)
        return D.mul_(power.unsqueeze(-1)), D_null.mul_(power), t

    def _pairs(self, f: ScalarFunction, a: Tensor) -> tuple[Tensor, Tensor]:
        D = self.rule(f, a.unsqueeze(-1), a.unsqueeze(-2))
        derivative = f.divided_difference(a, a)
        D.diagonal(dim1=-2, dim2=-1).copy_(derivative)
        return D, self.rule(f, a, torch.zeros_like(a))


def _trace_scale(eigenvalues: Tensor) -> Tensor:
    trace = eigenvalues.sum(-1, keepdim=True)
    return torch.where(trace > 0, trace, 1)


class MatrixFunction(torch.autograd.Function):
    """``f(P)`` from the decomposition of P. Saves the eigenvectors and eigenvalues, and for svd-exact also Q.

    The exact square root can be differentiated twice, where P is positive definite.
    """

    @staticmethod
    def forward(ctx: Any, P: Tensor, anchored: Tensor, eigenvalues: Tensor, U: Tensor, method: Method) -> Tensor:
        Q = (U * method.values(eigenvalues).unsqueeze(-2)) @ U.mT
        ctx.method = method
        # the exact square root can be differentiated again, through Q
        ctx.twice = method == Method(SquareRoot())
        ctx.save_for_backward(eigenvalues, U, Q if ctx.twice else anchored)
        return Q

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None, None]:
        eigenvalues, U, last = ctx.saved_tensors
        with torch.autocast(G.device.type, enabled=False):
            if ctx.twice and torch.is_grad_enabled():
                return _SquareRootGradient.apply(last, G, eigenvalues, U), None, None, None, None
            with torch.no_grad():
                D, _, t = ctx.method.differences(eigenvalues)
                gradient = _gradient_of_matrix(G, U, D, t)
        return once(gradient, last), None, None, None, None


def _gradient_of_matrix(G: Tensor, U: Tensor, D: Tensor, t: Tensor | None) -> Tensor:
    """``U (D * M) U^T``, and the trace term where there is one."""
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

    because ``U^T Y = diag(s) W^T``. Y need not be kept. The part null x null meets no feature and drops out.

    The forward pass saves W, U and l, or Y, U and l. The gradient is for the uncentred features: its rows have mean
    zero already, as those of Y have.
    """

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, anchored: Tensor, Y: Tensor, eigenvalues: Tensor, V: Tensor, method: Method
    ) -> Tensor:
        d, N = Y.shape[-2:]
        ctx.method, ctx.small = method, d > N
        ctx.input_dtype = X.dtype
        values = method.values(eigenvalues)
        if ctx.small:
            s = eigenvalues.sqrt()
            U = (Y @ V).mul_(torch.where(s > 0, 1 / s, 0).unsqueeze(-2))
            ctx.save_for_backward(eigenvalues, U, V, anchored)
        else:
            U = V
            ctx.save_for_backward(eigenvalues, U, Y, anchored)
        return ((U * values.unsqueeze(-2)) @ U.mT).to(X.dtype)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        with torch.autocast(G.device.type, enabled=False), torch.no_grad():
            gradient = CovarianceFunction._gradient(ctx, G)
        return once(gradient, ctx.saved_tensors[-1]), None, None, None, None, None

    @staticmethod
    def _gradient(ctx: Any, G: Tensor) -> Tensor:
        eigenvalues, U, other, _ = ctx.saved_tensors
        D, D_null, t = ctx.method.differences(eigenvalues)
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
    """``Y Y^T`` of the centred features over sqrt(N), ``(B, d, d)``; the gradient, for the uncentred X, is eq. (6)."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, anchored: Tensor, Y: Tensor) -> Tensor:
        ctx.input_dtype = X.dtype
        ctx.save_for_backward(Y, anchored)
        return Y @ Y.mT

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        Y, anchored = ctx.saved_tensors
        with torch.autocast(G.device.type, enabled=False), torch.no_grad():
            # (G + G^T) X I_bar, with I_bar = (I - 11^T/N) / N: the rows of Y have mean zero already
            gradient = ((G + G.mT) @ Y).mul_(Y.shape[-1] ** -0.5).to(ctx.input_dtype)
        return once(gradient, anchored), None, None

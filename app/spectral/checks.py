"""Checks of the input of the spectral functions, and of the matrices that they decompose.

Shapes: B matrices, r eigenvalues, d channels, N positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_features(X: Tensor) -> None:
    """Check features ``(..., d, N)``.

    Raises:
        TypeError: for a dtype that is not floating point.
        ValueError: for a shape without channels or positions.
    """
    _refuse_transforms()
    _check_floating(X, "features")
    if 0 in X.shape[-2:]:
        raise ValueError(f"features need at least one channel and one position (..., d, N), got {tuple(X.shape)}")


def check_matrix(P: Tensor) -> None:
    """Check matrices ``(..., d, d)``: square, finite, and symmetric up to round-off.

    Raises:
        TypeError: for a dtype that is not floating point.
        ValueError: if a matrix is not square or not symmetric.
        FloatingPointError: for non-finite values.
    """
    _refuse_transforms()
    _check_floating(P, "matrices")
    if P.shape[-1] != P.shape[-2] or P.shape[-1] == 0:
        raise ValueError(f"matrices must be square, got shape {tuple(P.shape)}")
    if not P.numel():
        return
    if not P.isfinite().all():
        raise FloatingPointError("matrices contain non-finite values")
    P = P.detach()
    scale, asymmetry = P.abs().amax((-2, -1)), (P - P.mT).abs().amax((-2, -1))
    wrong = asymmetry > torch.finfo(P.dtype).eps ** 0.5 * scale
    if wrong.any():
        worst, beside = asymmetry[wrong].max(), scale[wrong].max()
        raise ValueError(
            f"matrices must be symmetric: {int(wrong.sum())} of {wrong.numel()} are not, |P - P^T| reaches {worst:.3g} "
            f"at |P| = {beside:.3g}"
        )


def check_covariance(covariance: Tensor) -> None:
    """Check that covariances ``(B, d, d)`` are finite.

    Raises:
        FloatingPointError: for non-finite values.
    """
    # A covariance with a finite trace is finite, so one small sum and reading back one number are enough.
    bad = ~covariance.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    if bad.any():
        raise FloatingPointError(f"{int(bad.sum())} of {len(bad)} samples have non-finite features or covariances")


def check_eps(eps: float) -> None:
    """Check the shift eps.

    Raises:
        ValueError: if it is negative or not finite.
    """
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a finite number of at least 0, got {eps}")


def check_spectrum(eigenvalues: Tensor, eps: float, precision: float) -> None:
    """Check that P is positive semi-definite up to round-off, given the eigenvalues ``(B, r)`` of ``P + eps I``.

    Raises:
        ValueError: if a matrix is not.
    """
    if not eigenvalues.numel():
        return
    # Round-off is relative to the matrix that was decomposed, P + eps I, even where P itself is far smaller than eps.
    # The allowance is the same as for the symmetry of P.
    allowance = precision**0.5 * eigenvalues.abs().amax(-1)
    wrong = eigenvalues[:, 0] - eps < -allowance
    if wrong.any():
        smallest = eigenvalues[:, 0].min() - eps
        raise ValueError(
            f"matrices must be positive semi-definite: {int(wrong.sum())} of {len(wrong)} are not, "
            f"the smallest eigenvalue is {smallest:.3g}"
        )


def _refuse_transforms() -> None:
    """Raise an error under `torch.func` transforms that names the alternative, which torch's own errors do not."""
    # torch has no public function for this check
    if getattr(torch._C, "_are_functorch_transforms_active", bool)():
        raise RuntimeError(
            "torch.func transforms (vmap, grad, jvp) cannot run through spectral functions: these take batch "
            "dimensions themselves, and torch.autograd differentiates them"
        )


def _check_floating(X: Tensor, kind: str) -> None:
    if not X.is_floating_point():
        raise TypeError(f"{kind} must be floating point, got {X.dtype}")
    if X.ndim < 2:
        raise ValueError(f"{kind} need at least two dimensions, got shape {tuple(X.shape)}")

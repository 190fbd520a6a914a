"""Differentiable matrix functions by name: the public face of this package.

Shapes: ... any batch dimensions, B all of them flattened, d channels, N positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from app.spectral import gradients
from app.spectral.autograd import Covariance, CovarianceFunction, MatrixFunction, Method
from app.spectral.eigh import FailureCounts, eigh
from app.spectral.newton_schulz import Coefficients, NewtonSchulz, classic, minimax, newton_schulz, whole_number
from app.spectral.once import anchor
from app.spectral.pade import pade_order
from app.spectral.scalar_functions import InverseSquareRoot, Logarithm, Power, ScalarFunction, SquareRoot

Route = Literal["auto", "eigenbasis", "products"]
Observer = Callable[[Tensor], None]

FALLBACK = minimax(iterations=12, floor=1e-6)
"""Steps for matrices that cannot be decomposed: round-off accuracy for relative eigenvalues down to 1e-6."""


def _mpn_cov(f: ScalarFunction) -> Method:
    return Method(f, gradients.svd)


def _isqrt_cov(f: ScalarFunction, *, iterations: int = 5) -> Method:
    return Method(_iteration(f, classic(iterations)))


def _ns_minimax(f: ScalarFunction, *, iterations: int = 5, floor: float = 1e-3) -> Method:
    return Method(_iteration(f, minimax(iterations, floor)))


def _svd_topn(f: ScalarFunction, *, topn: int = 200) -> Method:
    whole_number("topn", topn)
    if f.value(torch.zeros(1)).item() != 0:
        raise ValueError("svd-topn sets eigenvalues to zero, where this function is not defined")
    return Method(f, gradients.svd, keep=topn)


def _svd_trunc(f: ScalarFunction, *, trunc_limit: float = 1e10) -> Method:
    if not isinstance(trunc_limit, int | float) or not trunc_limit > 0:
        raise ValueError(f"trunc_limit must be positive, got {trunc_limit!r}")
    return Method(f, partial(gradients.truncated, limit=trunc_limit))


def _svd_pi(f: ScalarFunction, *, taylor_degree: int = 100) -> Method:
    return Method(f, partial(gradients.power_iteration, degree=whole_number("taylor_degree", taylor_degree)))


def _svd_newton(f: ScalarFunction, *, iterations: int = 10) -> Method:
    return Method(f, backward_function=_iteration(f, classic(iterations)))


def _svd_taylor(f: ScalarFunction, *, taylor_degree: int = 100) -> Method:
    return Method(f, partial(gradients.taylor, degree=whole_number("taylor_degree", taylor_degree)))


def _svd_pade(f: ScalarFunction, *, pade_degree: int = 100) -> Method:
    pade_order(pade_degree)
    return Method(f, partial(gradients.pade, degree=pade_degree))


def _svd_exact(f: ScalarFunction) -> Method:
    return Method(f)


METHODS: dict[str, Callable[..., Method]] = {
    "mpn-cov": _mpn_cov,
    "isqrt-cov": _isqrt_cov,
    "svd-topn": _svd_topn,
    "svd-trunc": _svd_trunc,
    "svd-pi": _svd_pi,
    "svd-newton": _svd_newton,
    "svd-taylor": _svd_taylor,
    "svd-pade": _svd_pade,
    "svd-exact": _svd_exact,
    "ns-minimax": _ns_minimax,
}
"""The spectral layers by name; their keyword arguments are their options, with the papers' defaults."""


def make_method(name: str, f: ScalarFunction, options: dict[str, Any]) -> Method:
    """The layer `name` for the function f.

    Raises:
        ValueError: for an unknown name, an option that the layer does not take, or a value out of range.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    allowed = [p.name for p in inspect.signature(METHODS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in allowed:
            raise ValueError(f"{name} takes no option {option!r} (it takes {', '.join(allowed) or 'none'})")
    return METHODS[name](f, **options)


def matrix_sqrt(P: Tensor, method: str = "svd-exact", **options: Any) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix (Song et al., ICCV 2021, eq. 3).

    Args:
        P: ``(..., d, d)``, float16 to float64, symmetric up to round-off.
        method: one of `METHODS`.
        **options: of the method (see `METHODS`), and ``dtype`` (of the spectral part, default float64), ``route``
            (for the Newton-Schulz methods: ``"eigenbasis"``, ``"products"`` or ``"auto"``), ``counts`` (a
            `FailureCounts` to count in), ``observe`` (a function that is handed the eigenvalues ``(B, r)``, ascending,
            of the matrices that were decomposed; products decompose none).

    Returns:
        ``(..., d, d)`` in the dtype of P. ``svd-exact`` on positive definite input can be differentiated twice.

    Raises:
        ValueError: for P not square, symmetric, positive semi-definite (products see a negative diagonal only), or a
            wrong method or option.
        FloatingPointError: for P not finite.
        TypeError: for P not floating point.

    Example:
        >>> P = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> Q = matrix_sqrt(P)
        >>> (Q @ Q - P).abs().max().item() < 1e-6
        True
    """
    return _of_matrix(P, SquareRoot(), method, options)


def matrix_inverse_sqrt(P: Tensor, method: str = "svd-exact", *, eps: float = 1e-5, **options: Any) -> Tensor:
    """Inverse square root ``(P + eps I)^(-1/2)`` (Song et al., ECCV 2022, eq. 2); otherwise as `matrix_sqrt`.

    ``svd-topn`` is not defined here, as it makes eigenvalues zero.

    Raises:
        ValueError: also when ``P + eps I`` is not positive definite.
    """
    _check_eps(eps)
    return _of_matrix(P, InverseSquareRoot(), method, options, eps=eps)


def matrix_power(P: Tensor, alpha: float, method: str = "svd-exact", **options: Any) -> Tensor:
    """``P^alpha``, alpha > 0 (the power of MPN-COV, Li et al., ICCV 2017); otherwise as `matrix_sqrt`.

    The Newton-Schulz methods are not defined here.
    """
    _check_alpha(alpha)
    return _of_matrix(P, Power(alpha), method, options)


def matrix_log(P: Tensor, method: str = "svd-exact", *, eps: float = 1e-5, **options: Any) -> Tensor:
    """``log(P + eps I)`` (DeepO2P, Ionescu et al., ICCV 2015); otherwise as `matrix_inverse_sqrt`."""
    _check_eps(eps)
    return _of_matrix(P, Logarithm(), method, options, eps=eps)


def covariance_sqrt(X: Tensor, method: str = "svd-exact", **options: Any) -> Tensor:
    """Square root of the covariance ``X (I - 11^T/N) X^T / N`` of features (Song et al., ICCV 2021, eq. 1 and 3).

    The decomposition is made on the cheaper side, ``min(d, N)``; eigenvalues below ``max(d, N) eps l_max`` are zero.

    Args:
        X: features ``(..., d, N)``, float16 to float64.
        method: one of `METHODS`.
        **options: as in `matrix_sqrt`.

    Returns:
        ``(..., d, d)`` in the dtype of X.

    Raises:
        FloatingPointError: if X or its covariance is not finite.
        ValueError, TypeError: as in `matrix_sqrt`.
    """
    return _of_features(X, SquareRoot(), method, options)


def covariance_power(X: Tensor, alpha: float, method: str = "svd-exact", **options: Any) -> Tensor:
    """``alpha``-th power of the covariance of features, alpha > 0; otherwise as `covariance_sqrt`."""
    _check_alpha(alpha)
    return _of_features(X, Power(alpha), method, options)


@torch.no_grad()
def covariance_spectrum(X: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues of the covariance of features, for monitors of layers that do not decompose it; no gradient.

    Args:
        X: features ``(..., d, N)``.
        dtype: precision of the decomposition.

    Returns:
        ``(..., r)``, r = min(d, N), ascending; the other d - r eigenvalues are zero. A matrix that cannot be decomposed
        has NaN.

    Raises:
        FloatingPointError, ValueError, TypeError: as `covariance_sqrt`.
    """
    _check_features(X)
    with torch.autocast(X.device.type, enabled=False):
        Y = _centre(X.reshape(-1, *X.shape[-2:]), dtype)
        eigenvalues, _, unsolved = _decompose_covariance(Y, None)
    if unsolved is not None:
        eigenvalues[unsolved] = float("nan")
    return eigenvalues.reshape(*X.shape[:-2], -1)


@torch.compiler.disable
def _of_matrix(P: Tensor, f: ScalarFunction, name: str, options: dict[str, Any], *, eps: float = 0.0) -> Tensor:
    method, dtype, route, counts, observe = parse_options(name, f, options)
    _check_matrix(P)
    with torch.autocast(P.device.type, enabled=False):
        A = P.to(dtype).reshape(-1, *P.shape[-2:])
        if eps:
            A = A + eps * torch.eye(A.shape[-1], dtype=dtype, device=A.device)
        _check_covariance(A.detach())  # what was finite may overflow in another dtype
        if _by_products(method, route, A):
            if (A.diagonal(dim1=-2, dim2=-1) < 0).any():
                raise ValueError("matrices must be positive semi-definite: one has a negative entry on its diagonal")
            return _products(A, method).to(P.dtype).reshape(P.shape)
        with torch.no_grad():
            eigenvalues, U, unsolved = eigh((A + A.mT) / 2, counts)  # the backend would read one triangle only
            solved = slice(None) if unsolved is None else ~unsolved
            _check_spectrum(eigenvalues[solved] - eps, max(torch.finfo(P.dtype).eps, torch.finfo(dtype).eps))
            if eps:  # P is semi-definite: what lies below eps is round-off
                eigenvalues = eigenvalues.clamp_min(eps)
            else:
                eigenvalues = _without_null(eigenvalues, A.shape[-1])
                if isinstance(method.function, InverseSquareRoot | Logarithm) and (eigenvalues[solved] == 0).any():
                    raise ValueError("P + eps I must be positive definite, and P is singular: raise eps")
            if observe is not None:
                observe(eigenvalues[solved])
        Q = MatrixFunction.apply(A, anchor(A), eigenvalues, U, method)
        if unsolved is not None:
            Q = _replace(Q, unsolved, A, method)
        return Q.to(P.dtype).reshape(P.shape)


@torch.compiler.disable
def _of_features(X: Tensor, f: ScalarFunction, name: str, options: dict[str, Any]) -> Tensor:
    method, dtype, route, counts, observe = parse_options(name, f, options)
    _check_features(X)
    *batch, d, N = X.shape
    X = X.reshape(-1, d, N)
    with torch.autocast(X.device.type, enabled=False):
        if _by_products(method, route, X):
            P = Covariance.apply(X, anchor(X), _centre(X, dtype))
            return _products(P, method).to(X.dtype).reshape(*batch, d, d)
        with torch.no_grad():
            Y = _centre(X, dtype)
            eigenvalues, V, unsolved = _decompose_covariance(Y, counts)
            if observe is not None:
                observe(eigenvalues if unsolved is None else eigenvalues[~unsolved])
        Q = CovarianceFunction.apply(X, anchor(X), Y, eigenvalues, V, method)
        if unsolved is not None:
            Q = _replace(Q, unsolved, Covariance.apply(X, anchor(X), _centre(X, torch.float64)), method)
        return Q.reshape(*batch, d, d)


def _decompose_covariance(Y: Tensor, counts: FailureCounts | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """`eigh` of ``Y^T Y`` or ``Y Y^T``, the smaller; what cannot be told from zero is zero."""
    d, N = Y.shape[-2:]
    gram = Y.mT @ Y if d > N else Y @ Y.mT
    _check_covariance(gram)
    eigenvalues, V, unsolved = eigh(gram, counts)
    return _without_null(eigenvalues, max(d, N)), V, unsolved


def parse_options(
    name: str, f: ScalarFunction, options: dict[str, Any]
) -> tuple[Method, torch.dtype, Route, FailureCounts | None, Observer | None]:
    """The layer, and the options that all layers share: ``dtype``, ``route``, ``counts`` and ``observe``.

    Raises:
        ValueError: for a wrong name, option or value.
    """
    options = dict(options)
    dtype, route = options.pop("dtype", torch.float64), options.pop("route", "auto")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype of the spectral part must be torch.float32 or torch.float64, got {dtype}")
    if route not in ("auto", "eigenbasis", "products"):
        raise ValueError(f"unknown route {route!r}: choose auto, eigenbasis or products")
    counts, observe = options.pop("counts", None), options.pop("observe", None)
    method = make_method(name, f, options)
    if route == "products" and not isinstance(method.function, NewtonSchulz):
        raise ValueError("route 'products' is for the Newton-Schulz methods, isqrt-cov and ns-minimax")
    return method, dtype, route, counts, observe


def _iteration(f: ScalarFunction, coefficients: Coefficients) -> NewtonSchulz:
    if isinstance(f, SquareRoot | InverseSquareRoot):
        return NewtonSchulz(coefficients, inverse=isinstance(f, InverseSquareRoot))
    raise ValueError("the Newton-Schulz iteration is defined for the square root and its inverse only")


def _by_products(method: Method, route: Route, A: Tensor) -> bool:
    """Whether the matmul-only route runs.

    On a CPU the eigenbasis was the faster one at every size of the papers (README.md); on other devices we follow
    the papers' reason for the iteration, that products are what they do best.
    """
    if not isinstance(method.function, NewtonSchulz):
        return False
    return route == "products" or (route == "auto" and A.device.type != "cpu")


def _products(A: Tensor, method: Method) -> Tensor:
    f = method.function
    assert isinstance(f, NewtonSchulz)
    _check_covariance(A.detach())
    return newton_schulz(A, f.coefficients, inverse=f.inverse)


def _replace(Q: Tensor, unsolved: Tensor, A: Tensor, method: Method) -> Tensor:
    """Put the matmul-only result where there is no decomposition, for the same function as near as it gets."""
    f = method.function
    if isinstance(f, SquareRoot | InverseSquareRoot):
        f = _iteration(f, FALLBACK)
    if not isinstance(f, NewtonSchulz):
        raise LinAlgError(f"{int(unsolved.sum())} matrices could not be decomposed, and {f} needs it")
    # in float64, for the iteration amplifies round-off in the null space
    result = newton_schulz(A[unsolved].double(), f.coefficients, inverse=f.inverse)
    return Q.index_put((unsolved,), result.to(Q.dtype))


def _centre(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Centred features over sqrt(N), without autograd: the functions that use them return the gradient for X."""
    X = X.detach().to(dtype)
    return (X - X.mean(-1, keepdim=True)).mul_(X.shape[-1] ** -0.5)


def _without_null(eigenvalues: Tensor, n: int) -> Tensor:
    """Zero in place of what cannot be told from it: the backward error of the decomposition is about n eps l_max."""
    limit = n * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1:].clamp_min(0)
    return eigenvalues.masked_fill(eigenvalues <= limit, 0)


def _check_floating(X: Tensor, what: str) -> None:
    if not X.is_floating_point():
        raise TypeError(f"{what} must be floating point, got {X.dtype}")
    if X.ndim < 2:
        raise ValueError(f"{what} need at least two dimensions, got shape {tuple(X.shape)}")


def _check_features(X: Tensor) -> None:
    _check_floating(X, "features")
    if 0 in X.shape[-2:]:
        raise ValueError(f"features need at least one channel and one position (..., d, N), got {tuple(X.shape)}")


def _check_matrix(P: Tensor) -> None:
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


def _check_covariance(covariance: Tensor) -> None:
    # a covariance with a finite trace is finite: one small sum, one number read back
    bad = ~covariance.diagonal(dim1=-2, dim2=-1).sum(-1).isfinite()
    if bad.any():
        raise FloatingPointError(f"{int(bad.sum())} of {len(bad)} samples have non-finite features or covariances")


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")


def _check_eps(eps: float) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be a finite number of at least 0, got {eps}")


def _check_spectrum(eigenvalues: Tensor, precision: float) -> None:
    if not eigenvalues.numel():
        return
    # the same allowance for round-off as for the symmetry of P
    allowance = precision**0.5 * eigenvalues.abs().amax(-1)
    wrong = eigenvalues[:, 0] < -allowance
    if wrong.any():
        smallest = eigenvalues[:, 0].min()
        raise ValueError(
            f"matrices must be positive semi-definite: {int(wrong.sum())} of {len(wrong)} are not, "
            f"the smallest eigenvalue is {smallest:.3g}"
        )

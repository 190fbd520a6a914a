"""Differentiable functions of symmetric matrices and of the covariance of features: the public interface.

Shapes: ... any batch dimensions, B all of them flattened, d channels, N positions.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from .autograd import Covariance, CovarianceFunction, MatrixFunction, SpectralFunction
from .checks import check_covariance, check_eps, check_features, check_matrix, check_spectrum
from .eigh import FailureCounts, eigh
from .execution import Execution
from .iterations import Iteration, iterate
from .methods import Method, find_method, iteration_of
from .newton_schulz import cubic_steps, minimax
from .once_differentiable import graph_anchor
from .scalar_functions import InverseSquareRoot, Logarithm, Power, ScalarFunction, SquareRoot

FALLBACK = cubic_steps(minimax(iterations=12, floor=1e-6))
"""Steps for matrices that cannot be decomposed: round-off accuracy for relative eigenvalues down to 1e-6."""

EXECUTION_FIELDS = tuple(field.name for field in fields(Execution))


def matrix_sqrt(
    P: Tensor, method: str | Method = "svd-exact", *, execution: Execution | None = None, **options: Any
) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix (Song et al., ICCV 2021, eq. 3).

    Args:
        P: ``(..., d, d)``, float16 to float64, symmetric up to round-off.
        method: one of `METHODS`, or a `Method` object such as ``SVDPade(degree=50)``.
        execution: precision, route, failure counts and observer.
        **options: options of a method that is given by name, and fields of `Execution`.

    Returns:
        ``(..., d, d)`` in the dtype of P. ``svd-exact`` on positive definite input can be differentiated twice.

    Raises:
        ValueError: if P is not square, symmetric and positive semi-definite (the route ``products`` only detects a
            negative diagonal), or if a method or option is wrong.
        FloatingPointError: if P is not finite.
        TypeError: if P is not floating point.

    Example:
        >>> P = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> Q = matrix_sqrt(P)
        >>> (Q @ Q - P).abs().max().item() < 1e-6
        True
    """
    return _matrix_function(P, SquareRoot(), method, 0.0, execution, options)


def matrix_inverse_sqrt(
    P: Tensor,
    method: str | Method = "svd-exact",
    *,
    eps: float = 1e-5,
    execution: Execution | None = None,
    **options: Any,
) -> Tensor:
    """Inverse square root ``(P + eps I)^(-1/2)`` (Song et al., ECCV 2022, eq. 2); otherwise as `matrix_sqrt`.

    ``svd-topn`` is not defined here, because it sets eigenvalues to zero.

    Raises:
        ValueError: also if ``P + eps I`` is not positive definite.
    """
    return _matrix_function(P, InverseSquareRoot(), method, eps, execution, options)


def matrix_power(
    P: Tensor,
    alpha: float,
    method: str | Method = "svd-exact",
    *,
    execution: Execution | None = None,
    **options: Any,
) -> Tensor:
    """``P^alpha``, alpha > 0 (the power of MPN-COV, Li et al., ICCV 2017); otherwise as `matrix_sqrt`.

    The iterations (isqrt-cov, ns-minimax, svd-newton, svd-halley) are not defined here.
    """
    return _matrix_function(P, Power(alpha), method, 0.0, execution, options)


def matrix_log(
    P: Tensor,
    method: str | Method = "svd-exact",
    *,
    eps: float = 1e-5,
    execution: Execution | None = None,
    **options: Any,
) -> Tensor:
    """``log(P + eps I)`` (DeepO2P, Ionescu et al., ICCV 2015); otherwise as `matrix_inverse_sqrt`."""
    return _matrix_function(P, Logarithm(), method, eps, execution, options)


def covariance_sqrt(
    X: Tensor, method: str | Method = "svd-exact", *, execution: Execution | None = None, **options: Any
) -> Tensor:
    """Square root of the covariance ``X (I - 11^T/N) X^T / N`` of features (Song et al., ICCV 2021, eq. 1 and 3).

    The smaller of ``X^T X`` and ``X X^T`` is decomposed; eigenvalues below ``max(d, N) eps l_max`` count as zero.

    Args:
        X: features ``(..., d, N)``, float16 to float64.
        method: one of `METHODS`, or a `Method` object.
        execution: as in `matrix_sqrt`.
        **options: as in `matrix_sqrt`.

    Returns:
        ``(..., d, d)`` in the dtype of X.

    Raises:
        FloatingPointError: if X or its covariance is not finite.
        ValueError, TypeError: as in `matrix_sqrt`.
    """
    return covariance_function(X, SquareRoot(), method, execution=execution, **options)


def covariance_power(
    X: Tensor,
    alpha: float,
    method: str | Method = "svd-exact",
    *,
    execution: Execution | None = None,
    **options: Any,
) -> Tensor:
    """``alpha``-th power of the covariance of features, alpha > 0; otherwise as `covariance_sqrt`."""
    return covariance_function(X, Power(alpha), method, execution=execution, **options)


def matrix_function(
    P: Tensor,
    f: ScalarFunction,
    /,
    method: str | Method = "svd-exact",
    *,
    eps: float = 0.0,
    execution: Execution | None = None,
    **options: Any,
) -> Tensor:
    """``f(P + eps I)`` for a scalar function f, which may be your own; otherwise as `matrix_sqrt`.

    Args:
        P: ``(..., d, d)``.
        f: the scalar function of the eigenvalues.
        method: one of `METHODS`, or a `Method` object.
        eps: added to the eigenvalues of P.
        execution: as in `matrix_sqrt`.
        **options: as in `matrix_sqrt`.
    """
    return _matrix_function(P, f, method, eps, execution, options)


@torch.compiler.disable
def _matrix_function(
    P: Tensor,
    f: ScalarFunction,
    method: str | Method,
    eps: float,
    execution: Execution | None,
    options: dict[str, Any],
) -> Tensor:
    function, execution = _resolve(f, method, execution, options)
    check_eps(eps)
    check_matrix(P)
    dtype = execution.dtype
    with torch.autocast(P.device.type, enabled=False):
        A = P.to(dtype).reshape(-1, *P.shape[-2:])
        if eps:
            A = A + eps * torch.eye(A.shape[-1], dtype=dtype, device=A.device)
        check_covariance(A.detach())  # a finite P may overflow in another dtype
        if runs_by_products(function, execution, A.device):
            if (A.diagonal(dim1=-2, dim2=-1) < 0).any():
                raise ValueError("matrices must be positive semi-definite: one has a negative entry on its diagonal")
            return _products(A, function).to(P.dtype).reshape(P.shape)
        with torch.no_grad():
            # the backend would read only one triangle
            eigenvalues, U, unsolved = eigh((A + A.mT) / 2, execution.counts)
            solved = _solved(unsolved)
            check_spectrum(eigenvalues[solved], eps, max(torch.finfo(P.dtype).eps, torch.finfo(dtype).eps))
            if eps:  # P is semi-definite: eigenvalues below eps are round-off
                eigenvalues = eigenvalues.clamp_min(eps)
            else:
                eigenvalues = _without_null(eigenvalues, A.shape[-1])
                if not function.forward_function.defined_at_zero and (eigenvalues[solved] == 0).any():
                    raise ValueError("P + eps I must be positive definite, and P is singular: raise eps")
            execution.report(eigenvalues[solved])
        Q = MatrixFunction.apply(A, graph_anchor(A), eigenvalues, U, function)
        if unsolved is not None:
            Q = _replace(Q, unsolved, A, function)
        return Q.to(P.dtype).reshape(P.shape)


@torch.compiler.disable
def covariance_function(
    X: Tensor,
    f: ScalarFunction,
    /,
    method: str | Method = "svd-exact",
    *,
    execution: Execution | None = None,
    **options: Any,
) -> Tensor:
    """A scalar function f, which may be your own, of the covariance of features; otherwise as `covariance_sqrt`.

    Args:
        X: features ``(..., d, N)``.
        f: the scalar function of the eigenvalues.
        method: one of `METHODS`, or a `Method` object.
        execution: as in `matrix_sqrt`.
        **options: as in `matrix_sqrt`.

    Raises:
        ValueError: also if the covariance is singular and f is not defined at zero.
    """
    function, execution = _resolve(f, method, execution, options)
    check_features(X)
    *batch, d, N = X.shape
    X = X.reshape(-1, d, N)
    with torch.autocast(X.device.type, enabled=False):
        if runs_by_products(function, execution, X.device):
            P = _finite_covariance(X, execution.dtype)
            return _products(P, function).to(X.dtype).reshape(*batch, d, d)
        with torch.no_grad():
            Y = _centre(X, execution.dtype)
            eigenvalues, V, unsolved = _decompose_covariance(Y, execution.counts)
            solved = eigenvalues[_solved(unsolved)]
            if not function.forward_function.defined_at_zero and (d > N or (solved == 0).any()):
                raise ValueError(
                    f"the covariance is singular, and {f} is not defined at zero: use covariance and matrix_function, "
                    "with eps"
                )
            execution.report(solved)
        Q = CovarianceFunction.apply(X, graph_anchor(X), Y, eigenvalues, V, function)
        if unsolved is not None:
            P = Covariance.apply(X, graph_anchor(X), _centre(X, torch.float64))
            Q = _replace(Q, unsolved, P, function)
        return Q.reshape(*batch, d, d)


@torch.compiler.disable
def covariance(X: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Covariance ``X (I - 11^T/N) X^T / N`` of features, differentiable once.

    Args:
        X: features ``(..., d, N)``.
        dtype: precision of the products and of the result.

    Returns:
        ``(..., d, d)``.

    Raises:
        FloatingPointError: if X or its covariance is not finite.
        ValueError, TypeError: as in `covariance_sqrt`.
    """
    check_features(X)
    *batch, d, N = X.shape
    X = X.reshape(-1, d, N)
    with torch.autocast(X.device.type, enabled=False):
        return _finite_covariance(X, dtype).reshape(*batch, d, d)


@torch.no_grad()
def covariance_spectrum(X: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues of the covariance of features, without gradient: for monitors of layers that do not decompose it.

    Args:
        X: features ``(..., d, N)``.
        dtype: precision of the decomposition.

    Returns:
        ``(..., r)``, r = min(d, N), ascending; the other d - r eigenvalues are zero. Those of a matrix that cannot be
        decomposed are NaN.

    Raises:
        FloatingPointError, ValueError, TypeError: as in `covariance_sqrt`.
    """
    check_features(X)
    with torch.autocast(X.device.type, enabled=False):
        Y = _centre(X.reshape(-1, *X.shape[-2:]), dtype)
        eigenvalues, _, unsolved = _decompose_covariance(Y, None)
    if unsolved is not None:
        eigenvalues[unsolved] = float("nan")
    return eigenvalues.reshape(*X.shape[:-2], -1)


def runs_by_products(function: SpectralFunction, execution: Execution, device: torch.device) -> bool:
    """Whether a function runs on matrix products alone.

    On a CPU the eigenbasis was the faster route at every size of the papers (README.md); on other devices we follow the
    papers' argument for the iteration, that matrix products are what GPUs do best.

    Raises:
        ValueError: for the route ``products`` with a method that has no such route.
    """
    if not isinstance(function.forward_function, Iteration):
        if execution.route == "products":
            raise ValueError("route 'products' is for the iterations, isqrt-cov, ns-minimax and svd-halley")
        return False
    return execution.route == "products" or (execution.route == "auto" and device.type != "cpu")


def _resolve(
    f: ScalarFunction, method: str | Method, execution: Execution | None, options: dict[str, Any]
) -> tuple[SpectralFunction, Execution]:
    """Turn the method and the options of a call into objects."""
    execution = execution or Execution()
    settings = {}
    for name in EXECUTION_FIELDS:
        if name in options:
            settings[name] = options.pop(name)
    if settings:
        execution = replace(execution, **settings)
    return SpectralFunction(f, find_method(method, options)), execution


def _solved(unsolved: Tensor | None) -> Tensor | slice:
    return slice(None) if unsolved is None else ~unsolved


def _finite_covariance(X: Tensor, dtype: torch.dtype) -> Tensor:
    P: Tensor = Covariance.apply(X, graph_anchor(X), _centre(X, dtype))
    check_covariance(P.detach())
    return P


def _decompose_covariance(Y: Tensor, counts: FailureCounts | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """`eigh` of the smaller of ``Y^T Y`` and ``Y Y^T``; numerically zero eigenvalues are zero."""
    d, N = Y.shape[-2:]
    gram = Y.mT @ Y if d > N else Y @ Y.mT
    check_covariance(gram)
    eigenvalues, V, unsolved = eigh(gram, counts)
    return _without_null(eigenvalues, max(d, N)), V, unsolved


def _products(A: Tensor, function: SpectralFunction) -> Tensor:
    iteration = function.forward_function
    assert isinstance(iteration, Iteration)
    return iterate(A, iteration.steps, inverse=iteration.inverse)


def _replace(Q: Tensor, unsolved: Tensor, A: Tensor, function: SpectralFunction) -> Tensor:
    """Replace the matrices that could not be decomposed by the result of the iteration by products.

    Raises:
        LinAlgError: for a function that has no iteration.
    """
    iteration = function.forward_function
    if not isinstance(iteration, Iteration):
        try:
            iteration = iteration_of(iteration, FALLBACK)
        except ValueError:
            message = f"{int(unsolved.sum())} matrices could not be decomposed, and {iteration} needs it"
            raise LinAlgError(message) from None
    # in float64, because the iteration amplifies round-off in the null space
    result = iterate(A[unsolved].double(), iteration.steps, inverse=iteration.inverse)
    return Q.index_put((unsolved,), result.to(Q.dtype))


def _centre(X: Tensor, dtype: torch.dtype) -> Tensor:
    """Centred features over sqrt(N), without autograd: the functions that use them return the gradient for X."""
    X = X.detach().to(dtype)
    return (X - X.mean(-1, keepdim=True)).mul_(X.shape[-1] ** -0.5)


def _without_null(eigenvalues: Tensor, n: int) -> Tensor:
    """The eigenvalues, with zero in place of those below the backward error of the decomposition, n eps l_max."""
    limit = n * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1:].clamp_min(0)
    return eigenvalues.masked_fill(eigenvalues <= limit, 0)

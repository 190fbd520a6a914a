r"""The backward pass of the approximate layers equals the papers' chain, written out term by term.

    dL/dU = (G + G^T) U F,   dL/dLambda = (F' U^T G U)_diag                          eq. (4)
    dL/dP = U (K^T o (U^T dL/dU) + dL/dLambda) U^T                                   eq. (5)
    dL/dX = (dL/dP + (dL/dP)^T) X I_bar,   I_bar = (I - 11^T/N) / N                  eq. (6)

eq. (5) is not symmetric; eq. (6) symmetrises it, and so does the layer. Equations of Song et al., ICCV 2021.
Shapes: d channels, N positions; eigenvalues in descending order here, as in the paper.
"""

from __future__ import annotations

import pytest
import torch

from app.spectral import covariance_power, covariance_sqrt, matrix_inverse_sqrt, matrix_log, matrix_power, matrix_sqrt
from app.spectral.pade import pade_coefficients

EPS = torch.finfo(torch.float64).eps
SPECTRUM = [1.0, 0.8, 0.55, 0.4, 0.25, 0.1]


def skew(ev, upper):
    """K from its upper triangle, upper(l_i, l_j) for j > i, where l_i > l_j; the rest by skew symmetry."""
    K = torch.zeros(len(ev), len(ev), dtype=ev.dtype)
    for i in range(len(ev)):
        for j in range(i + 1, len(ev)):
            if ev[i] > 0:  # a pair of two zero eigenvalues has no K
                K[i, j] = upper(ev[i], ev[j])
                K[j, i] = -K[i, j]
    return K


def k_svd(ev):
    return skew(ev, lambda a, b: 1 / (a - b))


def k_trunc(ev, limit):  # eq. (12)
    return skew(ev, lambda a, b: min(1 / (a - b), limit))


def k_taylor(ev, degree):  # eq. (16)
    return skew(ev, lambda a, b: sum((b / a) ** k for k in range(degree + 1)) / a)


def k_pade(ev, degree):  # eq. (21)
    p, q = pade_coefficients(degree)

    def upper(a, b):
        x = b / a
        return sum(c * x**m for m, c in enumerate(p)) / sum(c * x**n for n, c in enumerate(q)) / a

    return skew(ev, upper)


def k_power_iteration(ev, degree):  # eq. (36)
    """For every ordered pair. No series starts at a zero eigenvalue; its K_0i would only meet F_0 = 0."""
    K = torch.zeros(len(ev), len(ev), dtype=ev.dtype)
    for i in range(len(ev)):
        for j in range(len(ev)):
            if i != j and ev[i] > 0:
                K[i, j] = sum((ev[j] / ev[i]) ** k for k in range(degree + 1)) / ev[i]
    return K


METHODS = {
    "mpn-cov": ({}, k_svd),
    "svd-topn": ({"topn": 4}, k_svd),
    "svd-trunc far": ({}, lambda ev: k_trunc(ev, 1e10)),
    "svd-trunc": ({"trunc_limit": 3.0}, lambda ev: k_trunc(ev, 3.0)),
    "svd-pi": ({"taylor_degree": 4}, lambda ev: k_power_iteration(ev, 4)),
    "svd-pi 1": ({"taylor_degree": 1}, lambda ev: k_power_iteration(ev, 1)),
    "svd-taylor": ({"taylor_degree": 5}, lambda ev: k_taylor(ev, 5)),
    "svd-taylor 100": ({}, lambda ev: k_taylor(ev, 100)),
    "svd-pade": ({}, lambda ev: k_pade(ev, 100)),
    "svd-pade 50": ({"pade_degree": 50}, lambda ev: k_pade(ev, 50)),
}

# name: (layer, f, f')
FUNCTIONS = {
    "sqrt": (matrix_sqrt, torch.sqrt, lambda ev: 0.5 * ev**-0.5),
    "inverse_sqrt": (
        lambda P, method, **options: matrix_inverse_sqrt(P, method, eps=0.0, **options),
        torch.rsqrt,
        lambda ev: -0.5 * ev**-1.5,
    ),
    "power": (
        lambda P, method, **options: matrix_power(P, 0.3, method, **options),
        lambda ev: ev**0.3,
        lambda ev: 0.3 * ev**-0.7,
    ),
    "log": (
        lambda P, method, **options: matrix_log(P, method, eps=0.0, **options),
        torch.log,
        lambda ev: 1 / ev,
    ),
}


def tolerance(n, degree=1):
    """Eigenvectors err by n eps l_max / gap; the series in l_j / l_i multiplies errors of eigenvalues by its degree."""
    gap, smallest = 0.15, 0.1
    return 10 * n * EPS * max(1 / gap, degree / smallest)


def chain(P, G, k, f, derivative, topn=None):
    """eq. (4), (5) and (11), not symmetrised, as printed."""
    ev, U = torch.linalg.eigh(P)
    ev, U = ev.flip(0), U.flip(1)
    ev = torch.where(ev > len(ev) * EPS * ev[0], ev, 0)
    if topn is not None:
        ev[topn:] = 0
    zero = ev == 0
    F = torch.diag(torch.where(zero, 0, f(ev)))
    dU = (G + G.T) @ U @ F
    dl = torch.diag(torch.where(zero, 0, derivative(ev)) * (U.T @ G @ U).diagonal())
    return U @ (k(ev).T * (U.T @ dU) + dl) @ U.T


# svd-topn makes eigenvalues zero, where the inverse square root and the logarithm are not defined
DEFINED = [(f, row) for f in FUNCTIONS for row in METHODS if row != "svd-topn" or f in ("sqrt", "power")]


@pytest.mark.parametrize(("function", "row"), DEFINED)
def test_gradient_for_the_matrix(function, row, with_spectrum, normal, backprop, relative_error):
    method, (options, k) = row.split()[0], METHODS[row]
    layer, f, derivative = FUNCTIONS[function]
    P, G = with_spectrum(SPECTRUM), normal(6, 6)
    _, gradient = backprop(lambda P: layer(P, method, **options), P, G)
    expected = chain(P, G, k, f, derivative, options.get("topn"))
    expected = (expected + expected.T) / 2
    assert relative_error(gradient, expected) < tolerance(6, options.get("taylor_degree", 1))


@pytest.mark.parametrize("row", METHODS)
@pytest.mark.parametrize(("d", "N"), [(9, 7), (7, 7), (6, 10)])
@pytest.mark.parametrize("function", ["sqrt", "power"])
def test_gradient_for_the_features(function, d, N, row, features, normal, backprop, relative_error):
    method, (options, k) = row.split()[0], METHODS[row]
    layer = covariance_sqrt if function == "sqrt" else lambda X, *a, **o: covariance_power(X, 0.3, *a, **o)
    _, f, derivative = FUNCTIONS[function]
    X, G = features(SPECTRUM, d, N), normal(d, d)
    _, gradient = backprop(lambda X: layer(X, method, **options), X, G)
    centring = (torch.eye(N, dtype=X.dtype) - torch.ones(N, N, dtype=X.dtype) / N) / N
    dP = chain(X @ centring @ X.T, G, k, f, derivative, options.get("topn"))
    expected = (dP + dP.T) @ X @ centring
    assert relative_error(gradient, expected) < tolerance(10, options.get("taylor_degree", 1))


def coupled_iteration(P, steps, inverse=False):
    """eq. (7) to (9), left to autograd."""
    trace = P.diagonal().sum()
    identity = torch.eye(len(P), dtype=P.dtype)
    Y, Z = P / trace, identity
    for _ in range(steps):
        W = (3 * identity - Z @ Y) / 2
        Y, Z = Y @ W, W @ Z
    return Z / trace.sqrt() if inverse else Y * trace.sqrt()


@pytest.mark.parametrize("iterations", [None, 1, 4])
@pytest.mark.parametrize("inverse", [False, True])
def test_svd_newton(inverse, iterations, with_spectrum, normal, backprop, relative_error):
    P, G = with_spectrum(SPECTRUM), normal(6, 6)
    options = {} if iterations is None else {"iterations": iterations}
    layer = FUNCTIONS["inverse_sqrt" if inverse else "sqrt"][0]
    value, gradient = backprop(lambda P: layer(P, "svd-newton", **options), P, G)
    _, expected = backprop(lambda P: coupled_iteration(P, iterations or 10, inverse), P, G)
    # the iteration multiplies errors in the null space by 3/2 a step, twice in its derivative
    assert relative_error(gradient, (expected + expected.T) / 2) < 10 * 6 * EPS * 1.5 ** (2 * (iterations or 10))
    assert torch.equal(value, layer(P, "svd-exact"))


@pytest.mark.parametrize(("d", "N"), [(9, 7), (7, 7), (6, 10)])
def test_svd_newton_on_features(d, N, features, normal, backprop, relative_error):
    X, G = features(SPECTRUM, d, N), normal(d, d)
    _, gradient = backprop(lambda X: covariance_sqrt(X, "svd-newton"), X, G)
    centring = (torch.eye(N, dtype=X.dtype) - torch.ones(N, N, dtype=X.dtype) / N) / N
    _, expected = backprop(lambda X: coupled_iteration(X @ centring @ X.T, 10), X, G)
    assert relative_error(gradient, expected) < 10 * 10 * EPS * 1.5**20


def test_equation_10(with_spectrum, normal, backprop, relative_error):
    # what the unrolled iteration above computes is the paper's formula for the trace terms
    P, G = with_spectrum(SPECTRUM), normal(6, 6)
    identity, trace = torch.eye(6, dtype=P.dtype), P.trace()

    def without_compensation(A, steps=10):
        Y, Z = A, identity
        for _ in range(steps):
            W = (3 * identity - Z @ Y) / 2
            Y, Z = Y @ W, W @ Z
        return Y

    Y, dA = backprop(without_compensation, P / trace, trace.sqrt() * G)
    expected = (
        -(dA.T @ P).trace() / trace**2 * identity + dA / trace + (G.T @ Y).trace() / (2 * trace.sqrt()) * identity
    )
    _, gradient = backprop(lambda P: matrix_sqrt(P, "isqrt-cov", iterations=10), P, G)
    assert relative_error(gradient, (expected + expected.T) / 2) < 10 * 6 * EPS * 1.5**20

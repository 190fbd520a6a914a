"""The forward pass of every layer equals its function in 40 digits."""

from __future__ import annotations

import doctest

import mpmath
import pytest
import scipy.linalg
import torch

from app.spectral import (
    METHODS,
    covariance_power,
    covariance_sqrt,
    functions,
    matrix_inverse_sqrt,
    matrix_log,
    matrix_power,
    matrix_sqrt,
)
from app.spectral.methods import method_options
from app.spectral.newton_schulz import classic, minimax

EPS = torch.finfo(torch.float64).eps
SPECTRUM = [1.0, 0.6, 0.3, 0.1, 0.03, 0.01]
# LAPACK's backward error, a small multiple of n eps, amplified by at most the condition number 100 for all of these f
TOLERANCE = 10 * len(SPECTRUM) * EPS * SPECTRUM[0] / SPECTRUM[-1]
SHIFT = 1e-3

EXACT_FORWARD = ["mpn-cov", "svd-topn", "svd-trunc", "svd-pi", "svd-taylor", "svd-pade", "svd-exact"]
HALLEY = "halley"
ITERATIONS = {"isqrt-cov": classic(5), "ns-minimax": minimax(5, 1e-3), "svd-halley": [HALLEY] * 5}
ROUTES = [(m, "eigenbasis") for m in METHODS] + [(m, "products") for m in ITERATIONS]


def test_names():
    assert " ".join(sorted(METHODS)) == (
        "isqrt-cov mpn-cov ns-minimax svd-exact svd-halley svd-newton svd-pade svd-pi svd-taylor svd-topn svd-trunc"
    )


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("mpn-cov", {}),
        ("isqrt-cov", {"iterations": 5}),
        ("svd-topn", {"topn": 200}),
        ("svd-trunc", {"trunc_limit": 1e10}),
        ("svd-pi", {"taylor_degree": 100}),
        ("svd-newton", {"iterations": 10}),
        ("svd-taylor", {"taylor_degree": 100}),
        ("svd-pade", {"pade_degree": 100}),
        ("svd-exact", {}),
        ("ns-minimax", {"iterations": 5, "floor": 1e-3}),
        ("svd-halley", {"iterations": 5}),
    ],
)
def test_published_defaults(method, options):
    default = METHODS[method]()
    assert {name: getattr(default, field) for name, field in method_options(METHODS[method]).items()} == options


def test_default_method_and_shift(with_spectrum):
    P = with_spectrum(SPECTRUM)
    assert torch.equal(matrix_sqrt(P), matrix_sqrt(P, "svd-exact"))
    assert torch.equal(matrix_inverse_sqrt(P), matrix_inverse_sqrt(P, "svd-exact", eps=1e-5))
    assert torch.equal(matrix_log(P), matrix_log(P, "svd-exact", eps=1e-5))


def test_documented_examples():
    results = doctest.testmod(functions)
    assert results.attempted > 0
    assert results.failed == 0


def iterate(steps, x, inverse):
    """The coupled iteration; a step is a pair of coefficients, or `HALLEY`."""
    y, z = x, mpmath.mpf(1)
    for step in steps:
        m = z * y
        w = (3 + m) / (1 + 3 * m) if step == HALLEY else step[0] - step[1] * m
        y, z = y * w, z * w
    return z if inverse else y


def scalar(method, inverse=False):
    """The function of an eigenvalue that the layer stands for."""
    if method in ITERATIONS and inverse:
        return lambda x, trace: iterate(ITERATIONS[method], x / trace, True) / mpmath.sqrt(trace)
    if method in ITERATIONS:
        return lambda x, trace: iterate(ITERATIONS[method], x / trace, False) * mpmath.sqrt(trace)
    return lambda x, trace: 1 / mpmath.sqrt(x) if inverse else mpmath.sqrt(x)


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_square_root(method, route, with_spectrum, in_high_precision, relative_error):
    P = with_spectrum(SPECTRUM)
    Q = matrix_sqrt(P, method, route=route)
    assert relative_error(Q, in_high_precision(P, scalar(method))) < TOLERANCE


@pytest.mark.parametrize(("method", "route"), [r for r in ROUTES if r[0] != "svd-topn"])
def test_inverse_square_root(method, route, with_spectrum, in_high_precision, relative_error):
    P = with_spectrum(SPECTRUM)
    Q = matrix_inverse_sqrt(P, method, eps=SHIFT, route=route)
    expected = in_high_precision(P + SHIFT * torch.eye(len(P), dtype=P.dtype), scalar(method, inverse=True))
    assert relative_error(Q, expected) < TOLERANCE


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("method", EXACT_FORWARD)
def test_power(method, alpha, with_spectrum, in_high_precision, relative_error):
    P = with_spectrum(SPECTRUM)
    assert relative_error(matrix_power(P, alpha, method), in_high_precision(P, lambda x, _: x**alpha)) < TOLERANCE


@pytest.mark.parametrize("method", [m for m in EXACT_FORWARD if m != "svd-topn"])
def test_logarithm(method, with_spectrum, in_high_precision, relative_error):
    P = with_spectrum(SPECTRUM)
    expected = in_high_precision(P + SHIFT * torch.eye(len(P), dtype=P.dtype), lambda x, _: mpmath.log(x))
    assert relative_error(matrix_log(P, method, eps=SHIFT), expected) < TOLERANCE


@pytest.mark.parametrize("eps", [0.0, 1e-8, 0.5])
def test_shift_is_added_once(eps, with_spectrum, relative_error):
    P = with_spectrum(SPECTRUM)
    Q = matrix_inverse_sqrt(P, eps=eps)
    identity = torch.eye(len(P), dtype=P.dtype)
    assert relative_error(Q @ (P + eps * identity) @ Q, identity) < TOLERANCE


@pytest.mark.parametrize(("d", "N"), [(8, 5), (5, 5), (4, 9)])
@pytest.mark.parametrize("method", METHODS)
def test_square_root_of_a_covariance(method, d, N, features, in_high_precision, relative_error):
    X = features(SPECTRUM[2:], d, N)
    expected = in_high_precision(X, scalar(method), centre=True)
    assert relative_error(covariance_sqrt(X, method), expected) < TOLERANCE


@pytest.mark.parametrize(("d", "N"), [(8, 5), (5, 5), (4, 9)])
@pytest.mark.parametrize("method", EXACT_FORWARD)
def test_power_of_a_covariance(method, d, N, features, in_high_precision, relative_error):
    X = features(SPECTRUM[2:], d, N)
    expected = in_high_precision(X, lambda x, _: x**0.3 if x else mpmath.mpf(0), centre=True)
    assert relative_error(covariance_power(X, 0.3, method), expected) < TOLERANCE


@pytest.mark.parametrize("topn", [1, 3, 6, 7])
def test_topn_keeps_the_largest_eigenvalues(topn, with_spectrum, in_high_precision, relative_error):
    P = with_spectrum(SPECTRUM)
    floor = SPECTRUM[min(topn, len(SPECTRUM)) - 1] * 0.9
    expected = in_high_precision(P, lambda x, _: mpmath.sqrt(x) if x > floor else mpmath.mpf(0))
    assert relative_error(matrix_sqrt(P, "svd-topn", topn=topn), expected) < TOLERANCE


@pytest.mark.parametrize("topn", [1, 3, 4])
@pytest.mark.parametrize(("d", "N"), [(8, 5), (5, 5), (4, 9)])
def test_topn_of_a_covariance(d, N, topn, features, in_high_precision, relative_error):
    X = features(SPECTRUM[2:], d, N)
    floor = SPECTRUM[2:][topn - 1] * 0.9
    expected = in_high_precision(X, lambda x, _: mpmath.sqrt(x) if x > floor else mpmath.mpf(0), centre=True)
    assert relative_error(covariance_sqrt(X, "svd-topn", topn=topn), expected) < TOLERANCE


@pytest.mark.parametrize("iterations", [1, 3, 8])
@pytest.mark.parametrize("method", ITERATIONS)
def test_number_of_iterations(method, iterations, with_spectrum, in_high_precision, relative_error):
    P = with_spectrum(SPECTRUM)
    options = {"floor": 0.01} if method == "ns-minimax" else {}
    steps = {
        "isqrt-cov": classic(iterations),
        "ns-minimax": minimax(iterations, 0.01),
        "svd-halley": [HALLEY] * iterations,
    }[method]
    expected = in_high_precision(P, lambda x, trace: iterate(steps, x / trace, False) * mpmath.sqrt(trace))
    assert relative_error(matrix_sqrt(P, method, iterations=iterations, **options), expected) < TOLERANCE


def test_scipy_agrees(with_spectrum, relative_error):
    P = with_spectrum(SPECTRUM)
    assert relative_error(matrix_sqrt(P), torch.from_numpy(scipy.linalg.sqrtm(P.numpy()))) < TOLERANCE


@pytest.mark.skipif(not hasattr(torch.linalg, "matrix_sqrth"), reason="torch.linalg.matrix_sqrth is not there")
def test_torch_agrees(with_spectrum, normal, backprop, relative_error):
    P, G = with_spectrum(SPECTRUM), normal(6, 6)
    value, gradient = backprop(torch.linalg.matrix_sqrth, P, G)
    our_value, our_gradient = backprop(matrix_sqrt, P, G)
    assert relative_error(our_value, value) < TOLERANCE
    # theirs need not be symmetric: only the symmetric part meets a symmetric argument
    assert relative_error(our_gradient, (gradient + gradient.T) / 2) < TOLERANCE


@pytest.mark.parametrize("eigenvalues", [[2.0, 2.0, 2.0], [2.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("method", METHODS)
def test_repeated_and_zero_eigenvalues(method, eigenvalues, with_spectrum, in_high_precision):
    P = with_spectrum(eigenvalues)
    expected = in_high_precision(P, scalar(method)) if P.any() else torch.zeros_like(P)
    # zero eigenvalues of P are round-off of order n eps, which a square root returns as sqrt(n eps)
    assert (matrix_sqrt(P, method) - expected).abs().max() <= (10 * 3 * EPS) ** 0.5 * 2

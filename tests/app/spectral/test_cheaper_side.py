"""`covariance_sqrt` decomposes the smaller of the two sides, and equals `matrix_sqrt` of the explicit covariance."""

from __future__ import annotations

import pytest
import torch

from app.spectral import METHODS, covariance_power, covariance_sqrt, matrix_power, matrix_sqrt

EPS = torch.finfo(torch.float64).eps
# (d, N, nonzero eigenvalues)
SHAPES = {
    "one position": (4, 1, []),
    "two positions": (4, 2, [1.0]),
    "fewer positions": (9, 6, [1.0, 0.8, 0.5, 0.3, 0.1]),
    "as many positions": (6, 6, [1.0, 0.8, 0.5, 0.3, 0.1]),
    "one more": (5, 6, [1.0, 0.8, 0.5, 0.3, 0.1]),
    "more positions": (5, 12, [1.0, 0.8, 0.5, 0.3, 0.1]),
    "fewer positions, low rank": (9, 6, [1.0, 0.5, 0.1]),
    "more positions, low rank": (5, 12, [1.0, 0.5, 0.1]),
    "one channel": (1, 6, [0.3]),
}
# eigenvectors err by n eps l_max / gap, with a gap of 0.1; a rule of degree 5 adds its powers of l_i / l_j
ITERATIVE = ("isqrt-cov", "ns-minimax", "svd-newton", "svd-halley")
TOLERANCE = 10 * 12 * EPS / 0.1 * 5
OPTIONS = {"svd-topn": {"topn": 3}, "svd-pi": {"taylor_degree": 5}, "svd-taylor": {"taylor_degree": 5}}


def covariance(X):
    Y = X - X.mean(-1, keepdim=True)
    return Y @ Y.mT / X.shape[-1]


@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "one position"])
@pytest.mark.parametrize("method", METHODS)
def test_equals_the_explicit_covariance(method, shape, features, normal, backprop, relative_error):
    d, N, eigenvalues = SHAPES[shape]
    X, G, options = features(eigenvalues, d, N), normal(d, d), OPTIONS.get(method, {})
    value, gradient = backprop(lambda X: covariance_sqrt(X, method, **options), X, G)
    expected = backprop(lambda X: matrix_sqrt(covariance(X), method, **options), X, G)
    # the derivative of 10 Newton-Schulz steps in the null space is 1.5^10 = 58, that of 5 minimax steps 50
    tolerance = TOLERANCE * (60 if method in ITERATIVE else 1)
    assert relative_error(value, expected[0]) < tolerance
    assert relative_error(gradient, expected[1]) < tolerance


@pytest.mark.parametrize("alpha", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("shape", [s for s in SHAPES if s != "one position"])
@pytest.mark.parametrize("method", [m for m in METHODS if m not in ITERATIVE])
def test_power_equals_the_explicit_covariance(method, shape, alpha, features, normal, backprop, relative_error):
    d, N, eigenvalues = SHAPES[shape]
    X, G, options = features(eigenvalues, d, N), normal(d, d), OPTIONS.get(method, {})
    value, gradient = backprop(lambda X: covariance_power(X, alpha, method, **options), X, G)
    expected = backprop(lambda X: matrix_power(covariance(X), alpha, method, **options), X, G)
    assert relative_error(value, expected[0]) < TOLERANCE
    assert relative_error(gradient, expected[1]) < TOLERANCE


@pytest.mark.parametrize("shape", SHAPES)
def test_first_power_is_the_covariance(shape, features, normal, backprop):
    d, N, eigenvalues = SHAPES[shape]
    X, G = features(eigenvalues, d, N), normal(d, d)
    value, gradient = backprop(lambda X: covariance_power(X, 1.0), X, G)
    expected = backprop(covariance, X, G)
    torch.testing.assert_close(value, expected[0], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(gradient, expected[1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", SHAPES)
def test_smaller_side_is_decomposed(shape, features, monkeypatch):
    d, N, eigenvalues = SHAPES[shape]
    sizes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: sizes.append(A.shape[-1]) or eigh(A))
    covariance_sqrt(features(eigenvalues, d, N))
    assert sizes == [min(d, N)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "N"), [(4, 1), (1, 1), (5, 3), (3, 3), (2, 6)])
def test_constant_features(d, N, method, normal, backprop):
    # small integers have an exact mean: the covariance is zero to the last bit, and so is everything after
    X = torch.arange(d, dtype=torch.float64).unsqueeze(1).expand(d, N)
    value, gradient = backprop(lambda X: covariance_sqrt(X, method), X, normal(d, d))
    assert torch.equal(value, torch.zeros(d, d, dtype=X.dtype))
    assert torch.equal(gradient, torch.zeros_like(X))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "N"), [(5, 3), (2, 6)])
def test_constant_features_with_a_rounded_mean(d, N, method, normal, backprop):
    X = torch.full((d, N), 0.1, dtype=torch.float64)
    value, gradient = backprop(lambda X: covariance_sqrt(X, method), X, normal(d, d))
    # what is left after subtracting the mean is a rounding of the sum of N numbers
    assert value.abs().max() <= d * N * EPS * 0.1
    assert gradient.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("d", "N"), [(6, 4), (6, 12)])
def test_duplicated_channels(d, N, method, features, normal, backprop, relative_error):
    # X = E Z with E^T E = 2 I: twice every eigenvalue of Z, and for the other half of the channels zeros
    Z, G = features([1.0, 0.4, 0.1], d // 2, N), normal(d, d)
    E = torch.eye(d // 2, dtype=Z.dtype).repeat(2, 1)
    value, gradient = backprop(lambda X: covariance_sqrt(X, method), E @ Z, G)
    assert relative_error(value, E @ covariance_sqrt(Z, method) @ E.T / 2**0.5) < TOLERANCE
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("d", "N"), [(6, 4), (6, 12)])
def test_gradient_of_duplicated_channels(d, N, features, normal, backprop, relative_error):
    # in the directions that keep the copies equal, the gradient is that of the single channels
    Z, G = features([1.0, 0.4, 0.1], d // 2, N), normal(d, d)
    E = torch.eye(d // 2, dtype=Z.dtype).repeat(2, 1)
    _, gradient = backprop(covariance_sqrt, E @ Z, G)
    _, expected = backprop(lambda Z: E @ covariance_sqrt(Z) @ E.T / 2**0.5, Z, G)
    assert relative_error(E.T @ gradient, expected) < TOLERANCE


@pytest.mark.parametrize("method", [m for m in METHODS if m != "svd-pi"])
@pytest.mark.parametrize(("d", "N"), [(8, 4), (4, 4), (3, 12)])
def test_repeated_eigenvalues_keep_the_gradient_finite(d, N, method, features, normal, backprop):
    X = features([1.0] * min(d, N - 1), d, N)
    _, gradient = backprop(lambda X: covariance_sqrt(X, method), X, normal(d, d))
    assert gradient.isfinite().all()

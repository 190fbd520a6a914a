r"""What the square root of a covariance does when its features are turned, permuted, scaled or moved.

The eigenvalues of the covariance err by about n eps l_max, hence the singular values s = sqrt(l) of the square root
by ``n eps s_max^2 / (2 s)``, and never by more than ``sqrt(n eps) s_max``. Where the features carry a mean, s_max is
the size of the features, for they are rounded before it is subtracted.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.spectral import METHODS, covariance_sqrt

EPS = torch.finfo(torch.float64).eps
examples = settings(max_examples=20, deadline=None, derandomize=True)
sizes = st.integers(1, 7)
seeds = st.integers(0, 10**6)


def tolerance(X):
    d, N = X.shape
    unit = 30 * max(d, N) * EPS
    s = torch.linalg.svdvals((X - X.mean(-1, keepdim=True)) / N**0.5)
    size = torch.linalg.matrix_norm(X) / N**0.5
    smallest = s[s > unit * size].min() if (s > unit * size).any() else size
    return min(unit * size / smallest, unit**0.5) * size


def assert_close(actual, expected, X):
    assert (actual - expected).abs().max() <= tolerance(X)


@pytest.mark.parametrize("method", METHODS)
@examples
@given(d=sizes, N=sizes, seed=seeds)
def test_channels_are_turned(method, normal, orthogonal, d, N, seed):
    X, R = normal(d, N, seed=seed), orthogonal(d, seed + 1)
    assert_close(covariance_sqrt(R @ X, method), R @ covariance_sqrt(X, method) @ R.T, X)


@pytest.mark.parametrize("method", METHODS)
@examples
@given(d=sizes, N=sizes, seed=seeds)
def test_positions_are_permuted(method, normal, d, N, seed):
    X = normal(d, N, seed=seed)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    assert_close(covariance_sqrt(X[:, order], method), covariance_sqrt(X, method), X)


@pytest.mark.parametrize("method", METHODS)
@examples
@given(d=sizes, N=sizes, seed=seeds, c=st.floats(1e-6, 1e6))
def test_features_are_scaled(method, normal, d, N, seed, c):
    X = normal(d, N, seed=seed)
    assert_close(covariance_sqrt(c * X, method) / c, covariance_sqrt(X, method), X)


@pytest.mark.parametrize("method", METHODS)
@examples
@given(d=sizes, N=sizes, seed=seeds, size=st.floats(0, 1e4))
def test_features_are_moved(method, normal, d, N, seed, size):
    X, shift = normal(d, N, seed=seed), size * normal(d, 1, seed=seed + 1)
    assert_close(covariance_sqrt(X + shift, method), covariance_sqrt(X, method), X + shift)


@pytest.mark.parametrize("method", METHODS)
@examples
@given(d=sizes, N=sizes, seed=seeds)
def test_result_is_symmetric_and_positive(method, normal, d, N, seed):
    X = normal(d, N, seed=seed)
    Q = covariance_sqrt(X, method)
    assert_close(Q, Q.T, X)
    assert torch.linalg.eigvalsh(Q).min() >= -tolerance(X)


# The gradient follows suit. One well-conditioned spectrum: the gradient of a layer need not be continuous in them.

SPECTRUM = [1.0, 0.7, 0.4, 0.2]
SIDES = [(8, 5), (5, 5), (4, 9)]
# eigenvectors err by n eps l_max / gap; a degree of 100 turns an eigenvalue's error of eps into one of 100 eps (and the
# power iteration's gradient is as large as (l_1 / l_4)^100: what is compared there is its leading digits)
GRADIENT_TOLERANCE = 30 * 9 * EPS / 0.2 * 100


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_gradient(method, d, N, features, normal, orthogonal, backprop, relative_error):
    X, G, R, order = features(SPECTRUM, d, N), normal(d, d), orthogonal(d, 3), torch.arange(N).flip(0)
    layer = lambda X: covariance_sqrt(X, method)  # noqa: E731
    _, gradient = backprop(layer, X, G)
    assert relative_error(backprop(layer, R @ X, R @ G @ R.T)[1], R @ gradient) < GRADIENT_TOLERANCE
    assert relative_error(backprop(layer, X[:, order], G)[1], gradient[:, order]) < GRADIENT_TOLERANCE
    assert relative_error(backprop(layer, 5 * X, G)[1], gradient) < GRADIENT_TOLERANCE
    assert relative_error(backprop(layer, X + normal(d, 1), G)[1], gradient) < GRADIENT_TOLERANCE


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_gradient_does_not_move_the_mean(method, d, N, features, normal, backprop):
    _, gradient = backprop(lambda X: covariance_sqrt(X, method), features(SPECTRUM, d, N), normal(d, d))
    assert gradient.sum(-1).abs().max() <= GRADIENT_TOLERANCE * gradient.abs().max()

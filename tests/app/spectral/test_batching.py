"""A sample's result is its own, in whatever batch it comes, and the batch is decomposed in one call."""

from __future__ import annotations

import pytest
import torch

from app.spectral import METHODS, FailureCounts, covariance_sqrt, matrix_inverse_sqrt, matrix_sqrt

EPS = torch.finfo(torch.float64).eps
SPECTRUM = [1.0, 0.7, 0.4, 0.2]
SIDES = [(7, 5), (5, 5), (4, 8)]
# products of a batch may add in another order than those of one matrix: round-off of the well-conditioned chain, and a
# hundredfold of it for rules of degree 100
TOLERANCE = 10 * 8 * EPS / 0.2 * 100


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_samples_of_very_different_size(method, d, N, features, normal, backprop, relative_error):
    # 1e9 between the scales, 1e18 between the eigenvalues: a threshold shared by the batch would erase the small ones
    X = torch.stack([10.0 ** (9 - 9 * b) * features(SPECTRUM, d, N, seed=b) for b in range(3)])
    G = normal(3, d, d)
    value, gradient = backprop(lambda X: covariance_sqrt(X, method), X, G)
    for b in range(3):
        own_value, own_gradient = backprop(lambda X: covariance_sqrt(X, method), X[b], G[b])
        assert relative_error(value[b], own_value) < TOLERANCE
        assert relative_error(gradient[b], own_gradient) < TOLERANCE


@pytest.mark.parametrize("layer", [matrix_sqrt, matrix_inverse_sqrt])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "svd-topn"])
def test_matrices_of_very_different_size(layer, method, with_spectrum, normal, backprop, relative_error):
    P = torch.stack([10.0 ** (12 - 8 * b) * with_spectrum(SPECTRUM, seed=b) for b in range(3)])
    G = normal(3, 4, 4)
    value, gradient = backprop(lambda P: layer(P, method), P, G)
    for b in range(3):
        own_value, own_gradient = backprop(lambda P: layer(P, method), P[b], G[b])
        assert relative_error(value[b], own_value) < TOLERANCE
        assert relative_error(gradient[b], own_gradient) < TOLERANCE


@pytest.mark.parametrize("route", ["eigenbasis", "products"])
@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (3, 1, 2)])
def test_batch_dimensions(batch, route, normal, backprop):
    X, G = normal(6, 5, 4), normal(6, 5, 5)
    n = torch.Size(batch).numel()
    layer = lambda X: covariance_sqrt(X, "ns-minimax", route=route)  # noqa: E731
    flat = backprop(layer, X[:n], G[:n])
    shaped = backprop(layer, X[:n].reshape(*batch, 5, 4), G[:n].reshape(*batch, 5, 5))
    assert shaped[0].shape == (*batch, 5, 5)
    assert torch.equal(shaped[0].reshape(n, 5, 5), flat[0])
    assert torch.equal(shaped[1].reshape(n, 5, 4), flat[1])
    P = (X @ X.mT)[:n].reshape(*batch, 5, 5)
    assert matrix_sqrt(P, "ns-minimax", route=route).shape == (*batch, 5, 5)
    assert matrix_inverse_sqrt(P, "ns-minimax", route=route).shape == (*batch, 5, 5)


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
@pytest.mark.parametrize("route", ["eigenbasis", "products"])
@pytest.mark.parametrize("method", METHODS)
def test_empty_batch(method, route, shape):
    options = {"route": route} if method in ("isqrt-cov", "ns-minimax", "svd-halley") else {}
    counts = FailureCounts()
    X = torch.zeros(*shape, 5, 4, requires_grad=True)
    P = torch.zeros(*shape, 5, 5, requires_grad=True)
    for Q, x in ((covariance_sqrt(X, method, counts=counts, **options), X), (matrix_sqrt(P, method, **options), P)):
        assert Q.shape == (*shape, 5, 5)
        Q.sum().backward()
        assert x.grad.shape == x.shape
    assert counts.failures == 0


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_memory_layout_does_not_matter(method, d, N, features, normal, backprop, relative_error):
    X, G = torch.stack([features(SPECTRUM, d, N, seed=b) for b in range(2)]), normal(2, d, d)
    value, gradient = backprop(lambda X: covariance_sqrt(X, method), X, G)
    x = torch.zeros(2, N, 2 * d, dtype=X.dtype)[..., ::2].mT.copy_(X).requires_grad_()
    assert not x.is_contiguous()
    Q = covariance_sqrt(x, method)
    (other,) = torch.autograd.grad(Q, x, G.mT.contiguous().mT)
    assert relative_error(Q.detach(), value) < TOLERANCE
    assert relative_error(other, gradient) < TOLERANCE
    P = X @ X.mT
    assert relative_error(matrix_sqrt(P.mT.contiguous().mT, method), matrix_sqrt(P, method)) < TOLERANCE


def test_upstream_gradient_of_a_sum(features, backprop, relative_error):
    # .sum() sends back one number expanded to the whole shape
    X = features(SPECTRUM, 7, 5).requires_grad_()
    covariance_sqrt(X).sum().backward()
    _, gradient = backprop(covariance_sqrt, X, torch.ones(7, 7, dtype=X.dtype))
    assert relative_error(X.grad, gradient) < TOLERANCE


@pytest.fixture
def decompositions(monkeypatch):
    """The matrices handed to torch.linalg.eigh, one entry for each call."""
    calls, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: calls.append(A) or eigh(A))
    return calls


@pytest.mark.parametrize("method", METHODS)
def test_one_decomposition_for_the_batch_of_a_thread(method, normal, backprop, decompositions):
    backprop(lambda X: covariance_sqrt(X, method), normal(8, 6, 5), normal(8, 6, 6))
    assert [A.shape for A in decompositions] == [(8, 5, 5)]
    decompositions.clear()
    P = normal(2, 4, 6, 9)
    backprop(lambda P: matrix_sqrt(P, method), P @ P.mT, normal(2, 4, 6, 6))
    assert [A.shape for A in decompositions] == [(8, 6, 6)]


@pytest.mark.parametrize("method", ["isqrt-cov", "ns-minimax", "svd-halley"])
def test_products_need_no_decomposition(method, normal, backprop, decompositions):
    backprop(lambda X: covariance_sqrt(X, method, route="products"), normal(8, 6, 5), normal(8, 6, 6))
    assert decompositions == []

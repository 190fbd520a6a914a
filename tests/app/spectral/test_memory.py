"""What the layers keep for the backward pass, in numbers of eight bytes.

Shapes: B batch, d channels, N positions, n = min(d, N).
"""

from __future__ import annotations

import weakref

import pytest
import torch

from app.spectral import METHODS, covariance_sqrt, matrix_inverse_sqrt, matrix_sqrt

B = 3


class Kept:
    """One tensor in the hands of autograd; it lives as long as the graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved(function):
    """Numbers of float64 that the graph of the result keeps alive, each storage once, without the result itself."""
    alive = weakref.WeakSet()

    def pack(tensor):
        kept = Kept(tensor)
        alive.add(kept)
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        result = function()
    assert result.requires_grad
    storages = {kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in alive}
    storages.pop(result.untyped_storage().data_ptr(), None)  # somebody uses it: it is there in any case
    return sum(storages.values()) / 8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("d", "N"), [(20, 9), (9, 9), (9, 20)])
def test_features(d, N, dtype, method, normal):
    # centred features or as many eigenvectors of the other side, eigenvectors, eigenvalues
    X, n = normal(B, d, N).to(dtype).requires_grad_(), min(d, N)
    assert 0 < saved(lambda: covariance_sqrt(X, method)) <= B * (d * N + n * n + n)


BOTH = [(matrix_sqrt, m) for m in METHODS] + [(matrix_inverse_sqrt, m) for m in METHODS if m != "svd-topn"]


@pytest.mark.parametrize(("layer", "method"), BOTH)
def test_matrices(layer, method, normal):
    X = normal(B, 9, 30)
    P = (X @ X.mT).requires_grad_()
    # svd-exact keeps its result as well, which is not counted: it is alive anyway
    assert 0 < saved(lambda: layer(P, method)) <= B * (9 * 9 + 9)


def unrolled(P, iterations):
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(P.shape[-1], dtype=P.dtype)
    Y, Z = P / trace, identity.expand_as(P)
    for _ in range(iterations):
        W = 1.5 * identity - 0.5 * Z @ Y
        Y, Z = Y @ W, W @ Z
    return Y * trace.sqrt()


@pytest.mark.parametrize("iterations", [3, 5, 10])
def test_products_keep_half_of_the_unrolled_iteration(iterations, normal):
    X = normal(B, 20, 40)
    P = (X @ X.mT).requires_grad_()
    ours = saved(lambda: matrix_sqrt(P, "isqrt-cov", iterations=iterations, route="products"))
    assert ours <= 0.5 * saved(lambda: unrolled(P, iterations))
    # the steps, and the trace
    assert ours <= B * (iterations * 20 * 20 + 1)


def test_nothing_is_kept_without_a_gradient(normal):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        covariance_sqrt(normal(B, 9, 20))
        matrix_sqrt(torch.eye(3))
        with torch.no_grad():
            covariance_sqrt(normal(B, 9, 20).requires_grad_())
    assert kept == []

"""Halley's iteration: its convergence, its routes, and its gradient against the unrolled iteration."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from app.spectral import covariance_sqrt, matrix_inverse_sqrt, matrix_sqrt
from app.spectral.halley import HalleyStep
from app.spectral.iterations import Iteration

EPS = torch.finfo(torch.float64).eps
SPECTRUM = [1.0, 0.7, 0.7, 0.2, 0.05, 1e-3]


def unrolled(P, iterations, inverse=False):
    """The textbook form, ``w = (I + 3 m)^(-1) (3 I + m)``, left to autograd."""
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(P.shape[-1], dtype=P.dtype)
    Y, Z = P / trace, identity
    for _ in range(iterations):
        M = Z @ Y
        W = torch.linalg.solve(identity + 3 * M, 3 * identity + M)
        Y, Z = Y @ W, W @ Z
    return Z / trace.sqrt() if inverse else Y * trace.sqrt()


@pytest.mark.parametrize("iterations", [1, 2, 5, 8])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("route", ["eigenbasis", "products"])
def test_both_routes_are_the_unrolled_iteration(
    route, inverse, iterations, with_spectrum, normal, backprop, relative_error
):
    P, G = with_spectrum(SPECTRUM), normal(6, 6)
    options = {"iterations": iterations, "route": route} | ({"eps": 0.0} if inverse else {})
    layer = matrix_inverse_sqrt if inverse else matrix_sqrt
    ours = backprop(lambda P: layer(P, "svd-halley", **options), P, G)
    theirs = backprop(lambda P: unrolled(P, iterations, inverse), P, (G + G.T) / 2)
    # round-off of n = 6 in solves of condition number 4, amplified by the condition number 1e3 of the inverse
    assert relative_error(ours[0], theirs[0]) < 10 * 6 * 4 * EPS * 1e3
    symmetric = (theirs[1] + theirs[1].mT) / 2
    assert relative_error(ours[1], symmetric) < 10 * 6 * 4 * EPS * 1e3**1.5


def test_convergence_is_cubic():
    x = torch.tensor([1e-1], dtype=torch.float64)
    errors = [(1 - Iteration((HalleyStep(),) * k).value(x) / x.sqrt()).abs().item() for k in range(1, 5)]
    # e <- e^3 / 4 near convergence: (1 - w y / s) with w y = y (3 + m) / (1 + 3 m)
    for before, after in pairwise(errors[1:]):
        assert after == pytest.approx(before**3 / 4, rel=0.2, abs=4 * EPS)


def test_small_eigenvalues_triple_at_each_step():
    x = torch.tensor([1e-16], dtype=torch.float64)
    for k in (1, 3, 5):
        assert Iteration((HalleyStep(),) * k).value(x).item() == pytest.approx(3**k * 1e-16, rel=1e-6)


def test_five_steps_beat_those_of_newton_schulz(normal, relative_error):
    X = normal(4, 64, 49).relu()
    exact = covariance_sqrt(X)
    assert relative_error(covariance_sqrt(X, "svd-halley"), exact) < 0.01 * relative_error(
        covariance_sqrt(X, "isqrt-cov"), exact
    )


def test_gradient_stays_finite_where_eigenvalues_coincide_or_vanish(with_spectrum, features):
    for value in (with_spectrum([1.0, 1.0, 1.0]), torch.zeros(3, 3, dtype=torch.float64)):
        P = value.clone().requires_grad_()
        matrix_sqrt(P, "svd-halley").sum().backward()
        assert P.grad.isfinite().all()
    X = features([1.0, 0.5], 6, 4).requires_grad_()
    covariance_sqrt(X, "svd-halley").sum().backward()
    assert X.grad.isfinite().all()

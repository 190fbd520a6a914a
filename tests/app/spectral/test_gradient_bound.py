r"""The gradient for the features is bounded whatever the spectrum: no remedy is needed against an explosion.

With Y the centred features over sqrt(N), singular values s_i and the upstream gradient in the singular bases, the
pair (i, j) of the gradient is ``2 c_ij M_ij (s_j, s_i) / (s_i + s_j)`` with a damping c_ij in [0, 1]. As
``s_i^2 + s_j^2 <= (s_i + s_j)^2`` its norm is at most ``2 |M_ij| = sqrt(2) |(M_ij, M_ji)|``, hence

    ||dL/dX||_F <= sqrt(2) ||(G + G^T)/2||_F / sqrt(N)

with equality for pairs of range and null space (s_j = 0). `svd-topn` divides by s_i alone where j is dropped, while
the features keep s_j <= s_i: the square of the norm is at most doubled, and the constant is 2 instead of sqrt(2).
"""

from __future__ import annotations

import pytest
import torch

from app.spectral import covariance_sqrt

EPS = torch.finfo(torch.float64).eps
SPECTRA = {
    "separated": [1.0, 0.5, 0.2, 0.1],
    "repeated": [1.0, 1.0, 1.0, 1.0],
    "nearly repeated": [1.0, 1.0 - 1e-12, 1e-4, 1e-4 * (1 - 1e-9)],
    "ill-conditioned": [1.0, 1e-4, 1e-8, 1e-11],
    "of rank one": [1.0],
}
SIDES = [(9, 6), (6, 6), (5, 9)]
DAMPED = ["svd-trunc", "svd-taylor", "svd-pade", "svd-exact"]


def bound(G, N):
    return 2**0.5 * torch.linalg.matrix_norm((G + G.T) / 2).item() / N**0.5


def slack(eigenvalues, n):
    """The eigenvectors carry errors of n eps l_max / l_min."""
    return 1 + n * EPS * eigenvalues[0] / eigenvalues[-1] + n * EPS


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", DAMPED)
def test_bound(method, d, N, spectrum, seed, features, normal, backprop):
    X, G = features(SPECTRA[spectrum], d, N, seed), normal(d, d, seed=seed)
    _, gradient = backprop(lambda X: covariance_sqrt(X, method), X, G)
    assert 0 < gradient.norm() <= bound(G, N) * slack(SPECTRA[spectrum], 10)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("d", "N"), SIDES)
def test_bound_is_attained_between_range_and_null_space(d, N, spectrum, features, backprop):
    eigenvalues = SPECTRA[spectrum]
    if len(eigenvalues) >= d:
        eigenvalues = eigenvalues[: d - 1]
    X = features(eigenvalues, d, N)
    U = torch.linalg.svd(X - X.mean(1, keepdim=True))[0]
    G = torch.outer(U[:, 0], U[:, -1])
    _, gradient = backprop(covariance_sqrt, X, G + G.T)
    assert gradient.norm().item() == pytest.approx(bound(G + G.T, N), rel=slack(eigenvalues, 10) - 1, abs=0)


@pytest.mark.parametrize("topn", [1, 2, 3])
@pytest.mark.parametrize("spectrum", ["separated", "ill-conditioned"])
@pytest.mark.parametrize(("d", "N"), SIDES)
def test_bound_of_topn(d, N, spectrum, topn, features, normal, backprop):
    X, G = features(SPECTRA[spectrum], d, N), normal(d, d)
    _, gradient = backprop(lambda X: covariance_sqrt(X, "svd-topn", topn=topn), X, G)
    assert 0 < gradient.norm() <= 2**0.5 * bound(G, N) * slack(SPECTRA[spectrum], 10)


@pytest.mark.parametrize(("d", "N"), SIDES)
def test_bound_of_topn_is_attained_between_kept_and_dropped(d, N, features, backprop):
    gap = 1e-6
    X = features([1.0, 1.0 - gap, 0.1], d, N)
    U = torch.linalg.svd(X - X.mean(1, keepdim=True))[0]
    G = torch.outer(U[:, 0], U[:, 1])
    _, gradient = backprop(lambda X: covariance_sqrt(X, "svd-topn", topn=1), X, G + G.T)
    # s_j^2 / s_i^2 = 1 - gap, and the eigenvectors carry errors of n eps / gap
    tolerance = gap + slack([1.0, gap], 10) - 1
    assert gradient.norm().item() == pytest.approx(2**0.5 * bound(G + G.T, N), rel=tolerance, abs=0)

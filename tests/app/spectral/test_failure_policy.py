"""Decompositions that fail, openly or silently: nothing is raised, the good samples stay as they are, all is counted.

The failures are injected: a matrix whose trace exceeds `LIMIT` is one that the broken backend cannot decompose.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.linalg import LinAlgError

from app.spectral import (
    METHODS,
    FailureCounts,
    covariance_power,
    covariance_sqrt,
    matrix_inverse_sqrt,
    matrix_log,
    matrix_power,
    matrix_sqrt,
)
from app.spectral.eigh import CHECK_EVERY, _is_wrong, eigh
from app.spectral.functions import FALLBACK

EPS = torch.finfo(torch.float64).eps
LIMIT = 100.0
SPECTRUM = [1.0, 0.6, 0.3, 0.1]
SIDES = [(6, 5), (4, 9)]
ITERATIVE = ("isqrt-cov", "ns-minimax", "svd-halley")
# Errors in the null space grow by a_k a step in the value, by a_k^2 and more in its tangents, which mix with the
# others: there is no useful bound for twelve steps. Three digits are more than a stochastic gradient knows.
VALUE = 10 * 6 * EPS * math.prod(step.a for step in FALLBACK)
GRADIENT = 1e-3
# Another decomposition of the same matrix, at another address or in another batch: kernels of the backend depend on the
# alignment. The backward error of each of the two is 10 n eps l_max; n = 6 at most. It moves an eigenvalue of the
# square root by |dl| / (2 sqrt(l_min)), and an eigenvector by |dP| over the gap of 0.2.
AGAIN_VALUE = 2 * 10 * 6 * EPS / (2 * min(SPECTRUM) ** 0.5)
AGAIN_GRADIENT = 2 * 10 * 6 * EPS / 0.2 / min(SPECTRUM) ** 0.5


def is_bad(A):
    return A.diagonal(dim1=-2, dim2=-1).sum(-1) > LIMIT


def raises(A, eigh):
    if is_bad(A).any():
        raise LinAlgError("the algorithm failed to converge")
    return eigh(A)


def one_by_one(A, eigh):
    """Every matrix alone, as when a batch fails: those that do not fail are then computed on the same layout."""
    if A.ndim == 3:
        raise LinAlgError("the algorithm failed to converge")
    return eigh(A)


def one_by_one_in_single_precision(A, eigh):
    return one_by_one(A, eigh) if A.dtype == torch.float32 else eigh(A)


def raises_in_single_precision(A, eigh):
    return raises(A, eigh) if A.dtype == torch.float32 else eigh(A)


def turned(A, eigh):
    """Eigenvectors of one matrix that are orthogonal, but belong to other eigenvalues."""
    eigenvalues, V = eigh(A)
    return eigenvalues, torch.where(is_bad(A)[..., None, None], V.roll(1, -1), V)


def skewed(A, eigh):
    """Eigenvectors that are none, and not even orthogonal."""
    eigenvalues, V = eigh(A)
    return eigenvalues, torch.where(is_bad(A)[..., None, None], V.abs(), V)


def not_finite(A, eigh):
    eigenvalues, V = eigh(A)
    return eigenvalues, torch.where(is_bad(A)[..., None, None], torch.nan, V)


@pytest.fixture
def broken(monkeypatch):
    """Replace torch.linalg.eigh by one of the functions above; `calls` limits how many calls are broken."""
    original = torch.linalg.eigh

    def install(fault, calls=math.inf):
        made = []

        def eigh(A):
            made.append(A)
            return fault(A, original) if len(made) <= calls else original(A)

        monkeypatch.setattr(torch.linalg, "eigh", eigh)
        return made

    return install


@pytest.fixture
def batch(features):
    """Three samples; the ones named are scaled so that the broken backend meets them."""

    def build(d, N, bad):
        return torch.stack([(20.0 if b in bad else 1.0) * features(SPECTRUM, d, N, seed=b) for b in range(3)])

    return build


def as_matrices(X):
    Y = X - X.mean(-1, keepdim=True)
    return Y @ Y.mT / X.shape[-1]


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("bad", [{1}, {0, 2}, {0, 1, 2}])
@pytest.mark.parametrize("method", METHODS)
def test_no_convergence_of_features(method, bad, d, N, batch, broken, normal, backprop, relative_error):
    X, G, counts = batch(d, N, bad), normal(3, d, d), FailureCounts()
    broken(one_by_one)
    expected = backprop(lambda X: covariance_sqrt(X, method), X, G)
    true = expected if method in ITERATIVE else backprop(covariance_sqrt, X, G)
    broken(raises)
    with pytest.warns(RuntimeWarning, match=f"{len(bad)} of 3 eigendecompositions failed; 0 solved .* {len(bad)} left"):
        value, gradient = backprop(lambda X: covariance_sqrt(X, method, counts=counts), X, G)
    for b in range(3):
        if b in bad:
            # no eigenbasis, no remedy: the nearest thing is the function itself
            assert relative_error(value[b], true[0][b]) < VALUE
            assert relative_error(gradient[b], true[1][b]) < GRADIENT
        else:
            assert torch.equal(value[b], expected[0][b])
            assert torch.equal(gradient[b], expected[1][b])
    assert counts == FailureCounts(calls=1, not_converged=len(bad), solved_by_iteration=len(bad))
    assert counts.failures == len(bad)


@pytest.mark.parametrize("layer", [matrix_sqrt, matrix_inverse_sqrt])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "svd-topn"])
def test_no_convergence_of_matrices(layer, method, batch, broken, normal, backprop, relative_error):
    P, G, counts = as_matrices(batch(4, 9, {1})), normal(3, 4, 4), FailureCounts()
    broken(one_by_one)
    expected = backprop(lambda P: layer(P, method), P, G)
    true = expected if method in ITERATIVE else backprop(layer, P, G)
    broken(raises)
    with pytest.warns(RuntimeWarning, match="1 of 3 eigendecompositions failed"):
        value, gradient = backprop(lambda P: layer(P, method, counts=counts), P, G)
    assert relative_error(value[1], true[0][1]) < VALUE
    assert relative_error(gradient[1], true[1][1]) < GRADIENT
    for b in (0, 2):
        assert torch.equal(value[b], expected[0][b])
        assert torch.equal(gradient[b], expected[1][b])
    assert counts == FailureCounts(calls=1, not_converged=1, solved_by_iteration=1)


@pytest.mark.parametrize("method", ["svd-exact", "isqrt-cov"])
@pytest.mark.parametrize("layer", [matrix_sqrt, matrix_inverse_sqrt])
def test_no_convergence_of_matrices_in_single_precision(layer, method, batch, broken, normal, backprop, relative_error):
    # single precision has no digits to lose: twelve steps in float32 would leave a gradient of noise
    P, G = as_matrices(batch(4, 9, {1})), normal(3, 4, 4)
    true = backprop(lambda P: layer(P, method), P, G)
    broken(raises)
    with pytest.warns(RuntimeWarning, match="1 of 3 eigendecompositions failed"):
        value, gradient = backprop(lambda P: layer(P, method, dtype=torch.float32), P, G)
    # P is rounded once: relative to its eigenvalues that is eps times a condition number of 10
    assert relative_error(value[1], true[0][1]) < 10 * 10 * torch.finfo(torch.float32).eps
    assert relative_error(gradient[1], true[1][1]) < GRADIENT


@pytest.mark.parametrize("eps", [0.0, 1e3])
def test_no_convergence_at_any_shift(eps, batch, broken, backprop, normal, relative_error):
    # whatever stands in for the eigenvalues that are not known, it is not to be judged, nor to be divided by
    P, G = as_matrices(batch(4, 9, {1})), normal(3, 4, 4)
    layer = lambda P: matrix_inverse_sqrt(P, eps=eps)  # noqa: E731
    true = backprop(layer, P, G)
    broken(raises)
    with pytest.warns(RuntimeWarning, match="of 3 eigendecompositions failed"):
        value, gradient = backprop(layer, P, G)
    for b in range(3):
        assert relative_error(value[b], true[0][b]) < VALUE
        assert relative_error(gradient[b], true[1][b]) < GRADIENT


def test_batch_that_fails_only_as_a_batch(batch, broken, normal, backprop, relative_error):
    X, G, counts = batch(6, 5, {1}), normal(3, 6, 6), FailureCounts()
    expected = backprop(covariance_sqrt, X, G)
    broken(one_by_one)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, gradient = backprop(lambda X: covariance_sqrt(X, counts=counts), X, G)
    for b in range(3):
        assert relative_error(value[b], expected[0][b]) < AGAIN_VALUE
        assert relative_error(gradient[b], expected[1][b]) < AGAIN_GRADIENT
    assert counts == FailureCounts(calls=1)


def test_no_convergence_of_topn(batch, broken, normal, backprop, relative_error):
    P, G = as_matrices(batch(4, 9, {1})), normal(3, 4, 4)
    true = backprop(matrix_sqrt, P, G)
    broken(raises)
    with pytest.warns(RuntimeWarning, match="1 of 3 eigendecompositions failed"):
        value, gradient = backprop(lambda P: matrix_sqrt(P, "svd-topn", topn=3), P, G)
    assert relative_error(value[1], true[0][1]) < VALUE
    assert relative_error(gradient[1], true[1][1]) < GRADIENT


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", METHODS)
def test_retry_in_double_precision(method, d, N, batch, broken, normal, backprop):
    X, G, counts = batch(d, N, {1}).float(), normal(3, d, d).float(), FailureCounts()
    options = {"taylor_degree": 5} if method == "svd-pi" else {}
    layer = lambda X, **more: covariance_sqrt(X, method, dtype=torch.float32, **options, **more)  # noqa: E731
    broken(one_by_one_in_single_precision)
    expected = backprop(layer, X, G)
    made = broken(raises_in_single_precision)
    with pytest.warns(
        RuntimeWarning, match="1 of 3 eigendecompositions failed; 1 solved in float64 on the CPU, 0 left"
    ):
        value, gradient = backprop(lambda X: layer(X, counts=counts), X, G)
    assert counts == FailureCounts(calls=1, not_converged=1, solved_on_cpu=1)
    assert [A.dtype for A in made if A.dtype == torch.float64] == [torch.float64]
    for b in (0, 2):
        assert torch.equal(value[b], expected[0][b])
        assert torch.equal(gradient[b], expected[1][b])
    # another decomposition of the same matrix: n eps l_max / gap, and a hundredfold for rules of that degree
    tolerance = 9 * torch.finfo(torch.float32).eps / 0.1 * 100
    torch.testing.assert_close(value[1], expected[0][1], rtol=0, atol=tolerance * expected[0][1].abs().max().item())
    torch.testing.assert_close(gradient[1], expected[1][1], rtol=0, atol=tolerance * expected[1][1].abs().max().item())


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize("method", ["svd-exact", "svd-pade", "isqrt-cov", "ns-minimax"])
def test_no_convergence_in_single_precision(method, d, N, batch, broken, normal, backprop, relative_error):
    X, G = batch(d, N, {1}), normal(3, d, d)
    true = backprop(lambda X: covariance_sqrt(X, method), X, G)
    broken(raises)
    with pytest.warns(RuntimeWarning, match="1 of 3 eigendecompositions failed; 0 solved"):
        value, gradient = backprop(lambda X: covariance_sqrt(X, method, dtype=torch.float32), X, G)
    assert relative_error(value[1], true[0][1]) < 10 * 6 * torch.finfo(torch.float32).eps
    assert relative_error(gradient[1], true[1][1]) < GRADIENT


@pytest.mark.parametrize("fault", [turned, skewed, not_finite])
@pytest.mark.parametrize("method", ["svd-exact", "svd-pade", "ns-minimax"])
def test_silently_wrong_and_solved_again(fault, method, batch, broken, normal, backprop, relative_error):
    # the check of the first call looks at sample 0; it finds sample 2 as well once it suspects the batch
    X, G, counts = batch(6, 5, {0, 2}), normal(3, 6, 6), FailureCounts()
    expected = backprop(lambda X: covariance_sqrt(X, method), X, G)
    broken(fault, calls=1)
    with pytest.warns(RuntimeWarning, match="2 of 3 eigendecompositions failed; 2 solved in float64 on the CPU"):
        value, gradient = backprop(lambda X: covariance_sqrt(X, method, counts=counts), X, G)
    assert counts == FailureCounts(calls=1, silently_wrong=2, solved_on_cpu=2)
    assert counts.failures == 2
    # the retry decomposes the same float64 numbers, at another address
    for b in (0, 2):
        assert relative_error(value[b], expected[0][b]) < AGAIN_VALUE
        assert relative_error(gradient[b], expected[1][b]) < AGAIN_GRADIENT
    assert torch.equal(value[1], expected[0][1])
    assert torch.equal(gradient[1], expected[1][1])


@pytest.mark.parametrize("fault", [turned, skewed, not_finite])
@pytest.mark.parametrize("method", ["svd-exact", "svd-pade", "ns-minimax"])
def test_silently_wrong_every_time(fault, method, batch, broken, normal, backprop, relative_error):
    X, G, counts = batch(6, 5, {0}), normal(3, 6, 6), FailureCounts()
    expected = backprop(lambda X: covariance_sqrt(X, method), X, G)
    broken(fault)
    with pytest.warns(RuntimeWarning, match="1 of 3 eigendecompositions failed; 0 solved .* 1 left"):
        value, gradient = backprop(lambda X: covariance_sqrt(X, method, counts=counts), X, G)
    assert counts == FailureCounts(calls=1, silently_wrong=1, solved_by_iteration=1)
    assert relative_error(value[0], expected[0][0]) < VALUE
    assert relative_error(gradient[0], expected[1][0]) < GRADIENT
    assert torch.equal(value[1:], expected[0][1:])
    assert torch.equal(gradient[1:], expected[1][1:])


def test_every_sample_gets_its_turn(batch, broken):
    # sample b is looked at in call 1 + b * CHECK_EVERY
    X, counts = batch(6, 5, {2}), FailureCounts()
    broken(turned)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * CHECK_EVERY):
            covariance_sqrt(X, counts=counts)
    assert counts == FailureCounts(calls=2 * CHECK_EVERY)
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        covariance_sqrt(X, counts=counts)
    assert counts == FailureCounts(calls=2 * CHECK_EVERY + 1, silently_wrong=1, solved_by_iteration=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 60])
def test_sound_decompositions_pass_the_check(n, dtype, normal):
    # also where eigenvectors are not unique, and at the ends of the range of numbers
    spectra = [torch.ones(n), torch.zeros(n), torch.logspace(-30, 0, n), 1e15 * torch.ones(n), 1e-15 * torch.ones(n)]
    for seed, spectrum in enumerate(spectra):
        U = torch.linalg.qr(normal(n, n, seed=seed))[0]
        A = ((U * spectrum.double()) @ U.T).to(dtype)
        counts = FailureCounts()
        eigh(((A + A.T) / 2)[None], counts)
        assert counts == FailureCounts(calls=1)


def test_check_is_a_residual_and_an_orthogonality(with_spectrum):
    # an error of a thousand n eps in one entry is found, twenty times the limit
    A = with_spectrum(SPECTRUM)[None]
    eigenvalues, V = torch.linalg.eigh(A)
    assert not _is_wrong(A, eigenvalues, V)
    slip = torch.zeros_like(V)
    slip[0, 1, 2] = 1e3 * 4 * EPS
    assert _is_wrong(A, eigenvalues, V + slip)
    assert _is_wrong(A, eigenvalues + slip[0, 1], V)
    assert _is_wrong(A, eigenvalues, 2 * V)
    assert _is_wrong(A, eigenvalues, torch.full_like(V, torch.nan))
    # every vector is an eigenvector of the identity: only the orthogonality tells
    identity, oblique = torch.eye(4, dtype=A.dtype)[None], torch.eye(4, dtype=A.dtype)[None] + slip
    assert not _is_wrong(identity, torch.ones_like(eigenvalues), identity)
    assert _is_wrong(identity, torch.ones_like(eigenvalues), oblique)


def test_each_object_counts_for_itself(batch, broken):
    X, one, other = batch(6, 5, {1}), FailureCounts(), FailureCounts()
    broken(raises)
    for counts in (one, one, None):
        with pytest.warns(RuntimeWarning, match="1 of 3"):
            covariance_sqrt(X, counts=counts)
    covariance_sqrt(X[[0, 2]], counts=other)
    assert one.as_dict() == {
        "calls": 2,
        "not_converged": 2,
        "silently_wrong": 0,
        "solved_on_cpu": 0,
        "solved_by_iteration": 2,
    }
    assert other == FailureCounts(calls=1)
    assert matrix_sqrt(as_matrices(X)[0], counts=other).isfinite().all()
    assert other == FailureCounts(calls=2)


@pytest.mark.parametrize(
    "function",
    [
        lambda X: covariance_power(X, 0.3),
        lambda X: matrix_power(as_matrices(X), 0.3),
        lambda X: matrix_log(as_matrices(X)),
    ],
    ids=["covariance_power", "matrix_power", "matrix_log"],
)
def test_functions_without_an_iteration(function, batch, broken):
    X = batch(4, 9, {1})
    broken(raises)
    with (
        pytest.warns(RuntimeWarning, match="1 of 3"),
        pytest.raises(LinAlgError, match="1 matrices could not be decomposed") as error,
    ):
        function(X)
    assert "\n" not in str(error.value)


def test_products_cannot_fail(batch, broken):
    X, counts = batch(6, 5, {0, 1, 2}), FailureCounts()
    broken(raises)
    assert covariance_sqrt(X, "isqrt-cov", route="products", counts=counts).isfinite().all()
    assert counts == FailureCounts()

"""The Newton-Schulz layers: two routes, one set of numbers, that of the unrolled iteration; and the best coefficients.

Shapes: B batch, d channels, N positions.
"""

from __future__ import annotations

import math

import pytest
import torch

from app.spectral import covariance_sqrt, matrix_inverse_sqrt, matrix_sqrt
from app.spectral.functions import FALLBACK
from app.spectral.iterations import Iteration, iterate
from app.spectral.newton_schulz import classic, cubic_steps, minimax

EPS = torch.finfo(torch.float64).eps
SPECTRUM = [1.0, 0.7, 0.7, 0.2, 0.05, 1e-3]
STEPS = {"isqrt-cov": classic, "ns-minimax": lambda k: minimax(k, 1e-3)}


def unrolled(P, coefficients, inverse=False):
    """eq. (7) to (9), left to autograd."""
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    identity = torch.eye(P.shape[-1], dtype=P.dtype).expand_as(P)
    Y, Z = P / trace, identity
    for a, b in coefficients:
        W = a * identity - b * Z @ Y
        Y, Z = Y @ W, W @ Z
    return Z / trace.sqrt() if inverse else Y * trace.sqrt()


def round_off(coefficients, d):
    """Z and the tangents in the null space grow by a_k a step, and so do their errors; the gradient has two such."""
    return 10 * d * EPS * math.prod(a for a, _ in coefficients) ** 2


def symmetric(G):
    return (G + G.mT) / 2


@pytest.mark.parametrize("iterations", range(1, 11))
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("method", STEPS)
def test_both_routes_are_the_unrolled_iteration(
    method, inverse, iterations, with_spectrum, normal, backprop, relative_error
):
    P = torch.stack([with_spectrum(SPECTRUM), 30 * with_spectrum([1.0] * 3 + [0.5] * 3, seed=1)])
    G, coefficients = normal(2, 6, 6), STEPS[method](iterations)
    layer = (lambda *a, **k: matrix_inverse_sqrt(*a, eps=0.0, **k)) if inverse else matrix_sqrt
    value, gradient = backprop(lambda P: unrolled(P, coefficients, inverse), P, G)
    for route in ("eigenbasis", "products"):
        ours = backprop(lambda P, r=route: layer(P, method, iterations=iterations, route=r), P, G)
        for b in range(2):
            assert relative_error(ours[0][b], value[b]) < round_off(coefficients, 6)
            assert relative_error(ours[1][b], symmetric(gradient)[b]) < round_off(coefficients, 6)


@pytest.mark.parametrize("iterations", [1, 2, 5, 10])
@pytest.mark.parametrize("eigenvalues", [[1.0, 0.5, 0.1, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0, 0.0]])
@pytest.mark.parametrize("method", STEPS)
def test_singular_matrix(method, eigenvalues, iterations, with_spectrum, normal, backprop, relative_error):
    # the pair (null, null) has a derivative here: phi'(0), the product of the a_k
    P, G, coefficients = with_spectrum(eigenvalues), normal(5, 5), STEPS[method](iterations)
    value, gradient = backprop(lambda P: unrolled(P, coefficients), P, G)
    for route in ("eigenbasis", "products"):
        ours = backprop(lambda P, r=route: matrix_sqrt(P, method, iterations=iterations, route=r), P, G)
        assert relative_error(ours[0], value) < round_off(coefficients, 5)
        assert relative_error(ours[1], symmetric(gradient)) < round_off(coefficients, 5)


@pytest.mark.parametrize(("d", "N"), [(8, 5), (5, 5), (4, 9)])
@pytest.mark.parametrize("iterations", [1, 5, 10])
@pytest.mark.parametrize("method", STEPS)
def test_features(method, iterations, d, N, features, normal, backprop, relative_error):
    X, G, coefficients = features([1.0, 0.7, 0.1, 0.01], d, N), normal(d, d), STEPS[method](iterations)

    def reference(X):
        Y = X - X.mean(-1, keepdim=True)
        return unrolled(Y @ Y.mT / N, coefficients)

    value, gradient = backprop(reference, X, G)
    for route in ("eigenbasis", "products"):
        ours = backprop(lambda X, r=route: covariance_sqrt(X, method, iterations=iterations, route=r), X, G)
        assert relative_error(ours[0], value) < round_off(coefficients, 9)
        assert relative_error(ours[1], gradient) < round_off(coefficients, 9)


@pytest.mark.parametrize("route", ["eigenbasis", "products"])
@pytest.mark.parametrize("method", STEPS)
def test_zero_matrix(method, route, normal, backprop):
    # no trace to divide by: the iterates of A = 0 are Y = 0, and Y' = prod a_k
    G = normal(3, 3)
    value, gradient = backprop(lambda P: matrix_sqrt(P, method, route=route), torch.zeros(3, 3, dtype=G.dtype), G)
    coefficients = STEPS[method](5)
    assert not value.any()
    expected = math.prod(a for a, _ in coefficients) * symmetric(G)
    torch.testing.assert_close(gradient, expected, rtol=20 * EPS, atol=0)


def test_one_step_by_hand(with_spectrum, relative_error):
    P = with_spectrum(SPECTRUM)
    A = P / P.trace()
    expected = P.trace().sqrt() * (1.5 * A - 0.5 * A @ A)
    assert relative_error(iterate(P[None], cubic_steps(classic(1)))[0], expected) < 10 * 6 * EPS
    assert iterate(P[None], cubic_steps(classic(1)), inverse=True)[0, 0, 1] == pytest.approx(
        (-0.5 * A / P.trace().sqrt())[0, 1].item(), rel=10 * 6 * EPS, abs=0
    )


def test_defaults(with_spectrum, relative_error):
    P = with_spectrum(SPECTRUM)
    assert torch.equal(matrix_sqrt(P, "isqrt-cov"), matrix_sqrt(P, "isqrt-cov", iterations=5))
    assert torch.equal(matrix_sqrt(P, "ns-minimax"), matrix_sqrt(P, "ns-minimax", iterations=5, floor=1e-3))
    # on a CPU the eigenbasis runs unless told otherwise
    assert torch.equal(matrix_sqrt(P, "isqrt-cov"), matrix_sqrt(P, "isqrt-cov", route="eigenbasis"))


# The minimax coefficients. The cubic a s - b s^3 acts on the singular values s of A^(1/2).


def cubic(pair, s):
    a, b = pair
    return a * s - b * s**3


def intervals(coefficients, floor):
    """The interval each step works on: the image of the one before, between its ends and its peak."""
    low, high = floor**0.5, 1.0
    for pair in coefficients:
        peak = (pair[0] / (3 * pair[1])) ** 0.5
        yield pair, low, peak, high
        assert low < peak < high
        ends = cubic(pair, low), cubic(pair, high)
        low, high = min(ends), max(*ends, cubic(pair, peak))


@pytest.mark.parametrize("floor", [0.5, 1e-1, 1e-3, 1e-6])
def test_minimax_coefficients_equioscillate(floor):
    # two coefficients, three extremal points of one height and alternating sign: the best odd cubic (Chebyshev)
    coefficients = minimax(4, floor)
    # errors of an interval's end are stretched by the slope of the cubic, a_k at most
    round_off = 8 * EPS * math.prod(a for a, _ in coefficients)
    for pair, low, peak, high in intervals(coefficients, floor):
        height = cubic(pair, peak) - 1
        assert 0 < height < 1
        assert 1 - cubic(pair, low) == pytest.approx(height, rel=0, abs=round_off)
        assert 1 - cubic(pair, high) == pytest.approx(height, rel=0, abs=round_off)
        grid = torch.linspace(low, high, 20001, dtype=torch.float64)
        assert (1 - cubic(pair, grid)).abs().max() <= height + round_off


@pytest.mark.parametrize("floor", [1e-1, 1e-3])
def test_no_perturbation_of_the_coefficients_is_better(floor):
    generator = torch.Generator().manual_seed(0)
    for (a, b), low, peak, high in intervals(minimax(4, floor), floor):
        best = cubic((a, b), peak) - 1
        s = torch.linspace(low, high, 2001, dtype=torch.float64)
        # the grid misses the peak by half a step h / 2 at most: |p''| / 2 (h / 2)^2 = 3 b s h^2 / 4, with s < 2
        missed = 1.5 * (b + 1) * (s[1] - s[0]) ** 2
        for size in (1e-1, 1e-2, 1e-3):
            da, db = size * torch.randn(2, 200, 1, dtype=torch.float64, generator=generator)
            others = (1 - cubic((a + da, b + db), s)).abs().amax(1)
            assert (others >= best - missed).all()
            assert (others > best).double().mean() > 0.99


def worst_relative_error(coefficients, floor):
    x = torch.logspace(math.log10(floor), 0, 2001, dtype=torch.float64)
    return (Iteration(cubic_steps(coefficients)).value(x) / x.sqrt() - 1).abs().max().item()


@pytest.mark.parametrize("floor", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("iterations", range(1, 9))
def test_minimax_is_closer_than_classic(iterations, floor):
    ours, theirs = (
        worst_relative_error(minimax(iterations, floor), floor),
        worst_relative_error(classic(iterations), floor),
    )
    assert ours < theirs or theirs < 1e-12


def test_minimax_needs_fewer_steps():
    # far from 1 the classic iteration multiplies a singular value by no more than 3/2 a step
    assert worst_relative_error(minimax(5, 1e-3), 1e-3) < 0.1 * worst_relative_error(classic(5), 1e-3)
    assert worst_relative_error(minimax(10, 1e-3), 1e-3) < 1e-8


def test_fallback_is_exact_where_it_says():
    # scalar products and differences of numbers near 1, one for each of 12 steps
    assert worst_relative_error([(step.a, step.b) for step in FALLBACK], 1e-6) < 12 * 8 * EPS


def test_minimax_tends_to_the_classic_coefficients():
    # near convergence both are Newton's: a = 3/2, b = 1/2
    a, b = minimax(12, 1e-2)[-1]
    assert a == pytest.approx(1.5, abs=1e-12)
    assert b == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("iterations", [0, -1])
def test_at_least_one_step(iterations):
    for steps in (classic, minimax):
        with pytest.raises(ValueError, match=f"iterations must .* at least 1, got {iterations}"):
            steps(iterations)


@pytest.mark.parametrize("floor", [0.0, 1.0, -1e-3, 2.0, float("nan")])
def test_floor_between_zero_and_one(floor):
    with pytest.raises(ValueError, match=f"floor must .* 1, got {floor}"):
        minimax(5, floor)

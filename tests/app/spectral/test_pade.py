"""The approximants of 1/(1 - x): what the coefficients solve, and their values against 60 digits."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import pytest
import torch

from app.spectral.pade import (
    DELTA,
    pade_coefficients,
    pade_damping,
    pade_maximum,
    pade_value,
    taylor_damping,
    taylor_value,
)

EPS = torch.finfo(torch.float64).eps
DEGREES = [2, 10, 50, 100, 200, 300]
RATIOS = [0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 1 - 1e-6, 1 - 1e-9]
EXACT_DELTA = Fraction(1, 10**20)


def closed_form(degree):
    """p and q in rational numbers."""
    n = degree // 2
    q = [Fraction(1)] + [-(1 - EXACT_DELTA) / n] * n
    return [sum(q[: m + 1]) for m in range(n + 1)], q


def rational(degree, x):
    """P(x) / Q(x) in the working precision of mpmath."""
    p, q = ([mpmath.mpf(c.numerator) / c.denominator for c in cs] for cs in closed_form(degree))
    return mpmath.polyval(p[::-1], x) / mpmath.polyval(q[::-1], x)


def test_delta():
    assert Fraction(str(DELTA)) == EXACT_DELTA


@pytest.mark.parametrize("degree", DEGREES)
def test_closed_form_solves_the_pade_system(degree):
    p, q = closed_form(degree)
    n = degree // 2
    a = [1] * (degree + 1)  # the geometric series
    for m in range(n + 1):
        assert sum(a[m - j] * q[j] for j in range(m + 1)) == p[m]
    for m in range(n + 1, degree + 1):
        assert sum(a[m - j] * q[j] for j in range(n + 1)) == EXACT_DELTA
    assert min(p) > 0
    assert sum(q) == EXACT_DELTA  # Q(1); Q decreases on [0, 1], for all q_1, q_2, ... are negative
    assert max(q[1:]) < 0


@pytest.mark.parametrize("degree", [2, 6, 20])
def test_closed_form_is_the_regularised_least_squares_solution(degree):
    # of the n equal rows q_1 + ... + q_n = -1, with the weight mu that leaves a residual of delta
    n = degree // 2
    _, q = closed_form(degree)
    with mpmath.workdps(60):
        mu = n * n * mpmath.mpf(10) ** -20 / (1 - mpmath.mpf(10) ** -20)
        rows = mpmath.ones(n, n)
        solution = mpmath.lu_solve(rows.T * rows + mu * mpmath.eye(n), -rows.T * mpmath.ones(n, 1))
        expected = mpmath.mpf(q[1].numerator) / q[1].denominator
        # the system's condition number is n^2 / mu = 1e20
        assert max(abs(s / expected - 1) for s in solution) < mpmath.mpf(10) ** (-60 + 20 + 4)


@pytest.mark.parametrize("degree", DEGREES)
def test_coefficients(degree):
    p, q = pade_coefficients(degree)
    p_exact, q_exact = closed_form(degree)
    assert p.dtype == q.dtype == torch.float64
    assert len(p) == len(q) == degree // 2 + 1
    # 1 - m/n is as good as its absolute error, one rounding of a number near 1; the last one, delta, is lost in it
    torch.testing.assert_close(p, torch.tensor([float(c) for c in p_exact], dtype=p.dtype), rtol=0, atol=2 * EPS)
    torch.testing.assert_close(q, torch.tensor([float(c) for c in q_exact], dtype=q.dtype), rtol=2 * EPS, atol=0)


@pytest.mark.parametrize("degree", DEGREES)
def test_all_numerator_coefficients_are_positive(degree):
    p, _ = pade_coefficients(degree)
    assert (p > 0).all()


@pytest.mark.parametrize("x", RATIOS)
@pytest.mark.parametrize("degree", DEGREES)
def test_pade_against_high_precision(degree, x):
    x = torch.tensor(x, dtype=torch.float64)
    t = 1 - x  # exact for x in [1/2, 1]
    with mpmath.workdps(60):
        exact = rational(degree, 1 - mpmath.mpf(t.item()))
        damping, value = float(exact * mpmath.mpf(t.item())), float(rational(degree, mpmath.mpf(x.item())))
    # delta / u is below 1e-10 for these x: what is left are the roundings of one quotient u / (u + delta)
    assert pade_damping(t, degree).item() == pytest.approx(damping, rel=4 * EPS, abs=0)
    assert pade_value(x, degree).item() == pytest.approx(value, rel=8 * EPS, abs=0)


@pytest.mark.parametrize("degree", DEGREES)
def test_pade_is_the_reciprocal_to_within_round_off(degree):
    x = torch.linspace(0, 1 - 1e-6, 1001, dtype=torch.float64)
    # c = u / (u + delta), and u = 1 - mean(x, .., x^n) is at least 1 - x
    assert ((1 - x) * pade_value(x, degree) - 1).abs().max() <= 8 * EPS + DELTA / 1e-6


@pytest.mark.parametrize("degree", DEGREES)
def test_pade_at_its_pole(degree):
    # (p_0 + ... + p_n) / (1 + q_1 + ... + q_n), eq. (53)
    p, q = closed_form(degree)
    expected = float(sum(p) / sum(q))
    assert pade_maximum(degree) == pytest.approx(expected, rel=4 * EPS, abs=0)
    assert pade_value(torch.ones(1, dtype=torch.float64), degree).item() == pade_maximum(degree)
    assert 0 < pade_maximum(degree) < float("inf")
    # c = t P/Q vanishes there, and everything up to the pole is below the value at the pole
    assert pade_damping(torch.zeros(1, dtype=torch.float64), degree).item() == 0
    near = 1 - torch.logspace(-16, 0, 200, dtype=torch.float64)
    assert (pade_value(near, degree) <= pade_maximum(degree)).all()
    assert (pade_value(near, degree) > 0).all()


def test_published_maximum_is_of_this_size():
    # the paper computes 6.48e20 for [50/50] with 20 digits
    assert 1e20 < pade_maximum(100) < 1e22


@pytest.mark.parametrize("x", [0.0, 0.01, *RATIOS])
@pytest.mark.parametrize("degree", [1, 50, 100, 200, 300])
def test_taylor_against_high_precision(degree, x):
    t = 1 - torch.tensor(x, dtype=torch.float64)
    with mpmath.workdps(60):
        exact = 1 - (1 - mpmath.mpf(t.item())) ** (degree + 1)
        value = mpmath.fsum(mpmath.mpf(x) ** k for k in range(degree + 1))
    # log1p, the product and expm1: the exponent carries 2 eps, and expm1 does not amplify a relative error
    assert taylor_damping(t, degree).item() == pytest.approx(float(exact), rel=8 * EPS, abs=0)
    # in x the polynomial is steeper: 1 - x is rounded for x below 1/2, where the sum is near 1 and flat
    assert taylor_value(torch.tensor(x, dtype=torch.float64), degree).item() == pytest.approx(
        float(value), rel=16 * EPS
    )


def test_taylor_at_its_limit():
    # K + 1, eq. (54); and 1 at x = 0
    for degree in (1, 50, 100):
        assert taylor_value(torch.ones(1, dtype=torch.float64), degree).item() == degree + 1
        assert taylor_damping(torch.ones(1, dtype=torch.float64), degree).item() == 1
        assert taylor_damping(torch.zeros(1, dtype=torch.float64), degree).item() == 0


# ICCV 2021, table 8: |1/(1 - x) - Taylor polynomial| at 0.9, 0.99, 0.999, rounded to the digits printed
@pytest.mark.parametrize(
    ("degree", "errors"),
    [(50, (5e-2, 60, 950)), (100, (2e-4, 36, 904)), (200, (6e-9, 13, 817)), (300, (1e-13, 5, 740))],
)
def test_published_errors_of_the_taylor_polynomial(degree, errors):
    x = torch.tensor([0.9, 0.99, 0.999], dtype=torch.float64)
    ours = 1 / (1 - x) - taylor_value(x, degree)
    for error, published in zip(ours.tolist(), errors, strict=True):
        if published > 1e-12:  # below, it is round-off of either side
            assert error == pytest.approx(published, rel=0.3)


@pytest.mark.parametrize("degree", [0, 1, 3, 99, -2])
def test_degree_must_be_even(degree):
    for function in (
        pade_coefficients,
        pade_maximum,
        lambda k: pade_damping(torch.ones(1), k),
        lambda k: pade_value(torch.ones(1), k),
    ):
        with pytest.raises(ValueError, match=f"pade_degree must be even and at least 2 .* got {degree}$"):
            function(degree)

"""The rules equal the papers' K_ij f(l_i) + K_ji f(l_j) for pairs of eigenvalues that are close, equal or far apart.

The reference is the printed formula in 60 digits at the float64 arguments, so a gap of 1e-15 leaves it 45 of them.
"""

from __future__ import annotations

import mpmath
import pytest
import torch

from app.spectral import gradients, matrix_sqrt
from app.spectral.scalar_functions import InverseSquareRoot, Logarithm, Power, SquareRoot

EPS = torch.finfo(torch.float64).eps
FUNCTIONS = {
    "sqrt": (SquareRoot(), mpmath.sqrt),
    "inverse_sqrt": (InverseSquareRoot(), lambda x: 1 / mpmath.sqrt(x)),
    "power": (Power(0.3), lambda x: x ** mpmath.mpf(0.3)),
    "log": (Logarithm(), mpmath.log),
}
# a = 2: the logarithm of 1 would be a special case
GAPS = [1e-15, 1e-14, 1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999]


def series(x, degree):
    return mpmath.fsum(x**k for k in range(degree + 1))


def pade(x, degree):
    """eq. (21) with the coefficients in closed form, which float64 cannot hold."""
    n, delta = degree // 2, mpmath.mpf(10) ** -20
    p = [1 - (1 - delta) * m / n for m in range(n + 1)]
    q = [mpmath.mpf(1)] + [-(1 - delta) / n] * n
    return mpmath.polyval(p[::-1], x) / mpmath.polyval(q[::-1], x)


def no_extra(t):
    return 0.0


def pade_extra(n):
    # c = u / (u + delta) with u = 1 - mean(x, .., x^n) near t (n + 1) / 2, where a few eps are lost by cancellation
    return lambda t: 1e-20 * 8 * EPS / (t * (n + 1) / 2) ** 2


# name: (rule, K_ij for l_i > l_j, relative error as a function of the relative gap, beyond the roundings)
RULES = {
    "svd-trunc": (
        lambda f, a, b: gradients.truncated(f, a, b, limit=1e4),
        lambda a, b: min(1 / (a - b), 10**4),
        no_extra,
    ),
    "svd-taylor": (
        lambda f, a, b: gradients.taylor(f, a, b, degree=100),
        lambda a, b: series(b / a, 100) / a,
        no_extra,
    ),
    "svd-taylor 3": (lambda f, a, b: gradients.taylor(f, a, b, degree=3), lambda a, b: series(b / a, 3) / a, no_extra),
    "svd-pade": (
        lambda f, a, b: gradients.pade(f, a, b, degree=100),
        lambda a, b: pade(b / a, 100) / a,
        pade_extra(50),
    ),
    "svd-pade 2": (lambda f, a, b: gradients.pade(f, a, b, degree=2), lambda a, b: pade(b / a, 2) / a, pade_extra(1)),
}
ROUNDINGS = 16 * EPS  # a handful of exponentials, logarithms and quotients, an eps or two each


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("rule", RULES)
def test_skew_symmetric_rules(rule, function, gap):
    evaluate, k, extra = RULES[rule]
    f, f_exact = FUNCTIONS[function]
    a, b = torch.tensor([2.0], dtype=torch.float64), torch.tensor([2.0 * (1 - gap)], dtype=torch.float64)
    with mpmath.workdps(60):
        high, low = mpmath.mpf(a.item()), mpmath.mpf(b.item())
        expected = float(k(high, low) * (f_exact(high) - f_exact(low)))
        t = float((high - low) / high)
    for D in (evaluate(f, a, b), evaluate(f, b, a)):
        assert D.item() == pytest.approx(expected, rel=ROUNDINGS + extra(t), abs=0)


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_quotient_of_differences(function, gap):
    f, f_exact = FUNCTIONS[function]
    a, b = torch.tensor([2.0], dtype=torch.float64), torch.tensor([2.0 * (1 - gap)], dtype=torch.float64)
    with mpmath.workdps(60):
        high, low = mpmath.mpf(a.item()), mpmath.mpf(b.item())
        values = f_exact(high), f_exact(low)
        expected = float((values[0] - values[1]) / (high - low))
        # the two values of f carry an eps each: this rule is meant to lose digits as eigenvalues meet
        error = 4 * EPS * float((abs(values[0]) + abs(values[1])) / abs(high - low))
    assert abs(gradients.svd(f, a, b).item() - expected) <= error


@pytest.mark.parametrize("gap", [0.0, *GAPS])
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("degree", [1, 10, 100])
def test_power_iteration(degree, function, gap):
    f, f_exact = FUNCTIONS[function]
    a, b = torch.tensor([2.0], dtype=torch.float64), torch.tensor([2.0 * (1 - gap)], dtype=torch.float64)
    with mpmath.workdps(60):
        high, low = mpmath.mpf(a.item()), mpmath.mpf(b.item())
        expected = float(series(low / high, degree) / high * f_exact(high))
        expected += float(series(high / low, degree) / low * f_exact(low))
    for D in (gradients.power_iteration(f, a, b, degree=degree), gradients.power_iteration(f, b, a, degree=degree)):
        # all terms of the two sums are positive, so no digit need be lost where l_i and l_j meet; x^k errs by k eps
        assert D.item() == pytest.approx(expected, rel=(degree + 1) * ROUNDINGS, abs=0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("rule", ["svd", "truncated", "taylor", "pade"])
def test_remedies_give_nothing_where_eigenvalues_coincide(rule, function):
    # a finite K_ij times f(l_i) - f(l_j) = 0; the truth is f'(l)
    options = {"truncated": {"limit": 1e10}, "taylor": {"degree": 100}, "pade": {"degree": 100}}.get(rule, {})
    f, _ = FUNCTIONS[function]
    a = torch.tensor([2.0, 1e-9, 3e5], dtype=torch.float64)
    assert torch.equal(getattr(gradients, rule)(f, a, a.clone(), **options), torch.zeros_like(a))
    assert gradients.exact(f, a, a.clone()).abs().min() > 0


@pytest.mark.parametrize(
    ("method", "options", "factor"),
    [("mpn-cov", {}, 0), ("svd-trunc", {}, 0), ("svd-taylor", {}, 0), ("svd-pade", {}, 0), ("svd-exact", {}, 1)],
)
def test_coinciding_eigenvalues_in_a_layer(method, options, factor, normal, backprop):
    # eigenvalues 4, 4, 1: the decomposition of a diagonal matrix is exact
    P, G = torch.diag(torch.tensor([4.0, 4.0, 1.0], dtype=torch.float64)), normal(3, 3)
    _, gradient = backprop(lambda P: matrix_sqrt(P, method, **options), P, G)
    D = torch.tensor([[1 / 4, factor / 4, 1 / 3], [factor / 4, 1 / 4, 1 / 3], [1 / 3, 1 / 3, 1 / 2]], dtype=P.dtype)
    torch.testing.assert_close(gradient, D * (G + G.T) / 2, rtol=ROUNDINGS, atol=0)

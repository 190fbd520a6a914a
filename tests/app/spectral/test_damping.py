"""Each remedy multiplies the true divided difference by a number c in [0, 1]; power iteration does not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.spectral import gradients
from app.spectral.scalar_functions import InverseSquareRoot, Logarithm, Power, SquareRoot

EPS = torch.finfo(torch.float64).eps
FUNCTIONS = [SquareRoot(), InverseSquareRoot(), Power(0.3), Logarithm()]
REMEDIES = {
    "truncated": lambda f, a, b: gradients.truncated(f, a, b, limit=1e10),
    "truncated hard": lambda f, a, b: gradients.truncated(f, a, b, limit=1e-2),
    "taylor": lambda f, a, b: gradients.taylor(f, a, b, degree=100),
    "taylor short": lambda f, a, b: gradients.taylor(f, a, b, degree=1),
    "pade": lambda f, a, b: gradients.pade(f, a, b, degree=100),
}
positive = st.floats(1e-8, 1e8)
fractions = st.one_of(st.floats(0, 1), st.floats(1e-16, 1e-10))
examples = settings(max_examples=60, deadline=None, derandomize=True)


def damping(rule, f, a, gap):
    a = torch.tensor(a, dtype=torch.float64)
    b = a * (1 - gap) if gap < 1 else a * 1e-3
    return (rule(f, a, b) / gradients.exact(f, a, b)).item()


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
@pytest.mark.parametrize("name", REMEDIES)
@examples
@given(a=positive, gap=fractions)
def test_a_remedy_is_a_damping(name, f, a, gap):
    # c is multiplied in: one rounding there, one in the division here
    assert 0 <= damping(REMEDIES[name], f, a, gap) <= 1 + 2 * EPS


@examples
@given(a=positive, gap=fractions)
def test_a_better_approximant_damps_less(a, gap):
    by_degree = [
        damping(lambda f, a, b, k=k: gradients.taylor(f, a, b, degree=k), SquareRoot(), a, gap) for k in (1, 5, 50, 500)
    ]
    by_degree.append(damping(REMEDIES["pade"], SquareRoot(), a, gap))
    # degree 500 is not yet Padé; each number carries a few roundings
    assert all(low <= high + 8 * EPS for low, high in pairwise(by_degree))


@examples
@given(a=positive, gap=fractions, limit=st.floats(1e-3, 1e12))
def test_truncation_starts_at_the_limit(a, gap, limit):
    a = torch.tensor(a, dtype=torch.float64)
    b = a * (1 - gap)
    c = damping(lambda f, a, b: gradients.truncated(f, a, b, limit=limit), SquareRoot(), a.item(), gap)
    if gap < 1:
        assert c == pytest.approx(min(1, limit * (a - b).item()), rel=4 * EPS, abs=0)


@pytest.mark.parametrize("f", FUNCTIONS, ids=str)
def test_power_iteration_is_none(f):
    # at half the largest eigenvalue, the series the wrong way round is 2^101
    assert abs(damping(lambda f, a, b: gradients.power_iteration(f, a, b, degree=100), f, 4.0, 0.5)) > 2.0**90

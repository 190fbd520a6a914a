"""Values and divided differences of the scalar functions against the quotient in high precision, at every distance."""

from __future__ import annotations

import mpmath
import pytest
import torch

from app.spectral.halley import HalleyStep
from app.spectral.iterations import Iteration
from app.spectral.newton_schulz import classic, cubic_steps, minimax
from app.spectral.scalar_functions import InverseSquareRoot, Logarithm, Power, SquareRoot, relative_gap

EPS = torch.finfo(torch.float64).eps
# name: (f, f in high precision, f'); a rounding or two for each of at most eight elementary operations
FUNCTIONS = {
    "sqrt": (SquareRoot(), mpmath.sqrt, lambda x: 1 / (2 * mpmath.sqrt(x))),
    "inverse_sqrt": (InverseSquareRoot(), lambda x: 1 / mpmath.sqrt(x), lambda x: -1 / (2 * x * mpmath.sqrt(x))),
    "log": (Logarithm(), mpmath.log, lambda x: 1 / x),
}
for alpha in (0.1, 0.5, 1.0, 2.5):
    FUNCTIONS[f"power {alpha}"] = (
        Power(alpha),
        lambda x, alpha=alpha: mpmath.power(x, alpha),
        lambda x, alpha=alpha: alpha * mpmath.power(x, alpha - 1),
    )
ROUNDINGS = 16 * EPS
NEARLY_EQUAL = [10.0**-k for k in range(1, 16)]
FAR = [0.5, 1e-2, 1e-6, 1e-10, 1e-13, 1e-15, 1e-17, 1e-20, 1e-100]
SCALES = [1e-8, 1.0, 3e6]


def number(x):
    return torch.tensor(x, dtype=torch.float64)


def quotient(f, a, b):
    with mpmath.workdps(140):  # more than the 100 digits between the arguments
        a, b = mpmath.mpf(a.item()), mpmath.mpf(b.item())
        return float((f(a) - f(b)) / (a - b))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value(name, scale):
    f, exact, _ = FUNCTIONS[name]
    assert f.value(number(scale)).item() == pytest.approx(float(exact(mpmath.mpf(scale))), rel=ROUNDINGS, abs=0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_arguments(name, scale):
    f, _, derivative = FUNCTIONS[name]
    a = number(scale)
    assert f.divided_difference(a, a).item() == pytest.approx(
        float(derivative(mpmath.mpf(scale))), rel=ROUNDINGS, abs=0
    )


@pytest.mark.parametrize("gap", NEARLY_EQUAL)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nearly_equal_arguments(name, scale, gap):
    f, exact, _ = FUNCTIONS[name]
    a, b = number(scale), number(scale * (1 - gap))
    assert f.divided_difference(a, b).item() == pytest.approx(quotient(exact, a, b), rel=ROUNDINGS, abs=0)


@pytest.mark.parametrize("ratio", FAR)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_far_apart(name, scale, ratio):
    f, exact, _ = FUNCTIONS[name]
    a, b = number(scale), number(scale * ratio)
    assert f.divided_difference(a, b).item() == pytest.approx(quotient(exact, a, b), rel=ROUNDINGS, abs=0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_symmetric_in_its_arguments(name):
    f, _, _ = FUNCTIONS[name]
    a = torch.tensor([1e-9, 0.3, 0.3000000001, 1.0, 1.0, 7e8], dtype=torch.float64)
    D = f.divided_difference(a.unsqueeze(0), a.unsqueeze(1))
    assert torch.equal(D, D.T)


@pytest.mark.parametrize(
    ("f", "at_four", "at_zero"),
    [
        (SquareRoot(), 0.5, 0.0),  # infinite at (0, 0): the minimum-norm choice
        (Power(0.5), 0.5, 0.0),
        (Power(1.0), 1.0, 1.0),  # the identity has derivative one everywhere
        (Power(2.0), 4.0, 0.0),
        (Power(1.5), 2.0, 0.0),
    ],
    ids=str,
)
def test_zero_arguments(f, at_four, at_zero):
    four, zero = number(4.0), number(0.0)
    assert f.value(zero) == 0
    # (f(4) - f(0)) / 4, one way round and the other
    assert f.divided_difference(four, zero).item() == pytest.approx(at_four, rel=ROUNDINGS, abs=0)
    assert f.divided_difference(zero, four).item() == pytest.approx(at_four, rel=ROUNDINGS, abs=0)
    assert f.divided_difference(zero, zero).item() == at_zero


def test_broadcasting():
    a = torch.rand(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    for f, _, _ in FUNCTIONS.values():
        D = f.divided_difference(a.unsqueeze(-1), a.unsqueeze(-2))
        assert D.shape == (2, 5, 5)
        assert D[1, 2, 4] == f.divided_difference(a[1, 2], a[1, 4])


def test_arguments_are_left_alone():
    a, b = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    kept = a.clone(), b.clone()
    for f, _, _ in [
        *FUNCTIONS.values(),
        (Iteration(cubic_steps(classic(3))), None, None),
        (Iteration((HalleyStep(),) * 3), None, None),
    ]:
        f.value(a)
        f.divided_difference(a, b)
    assert torch.equal(a, kept[0])
    assert torch.equal(b, kept[1])


def test_relative_gap():
    high, t = relative_gap(number([4.0, 1.0, 0.0, 3.0]), number([1.0, 4.0, 0.0, 0.0]))
    assert high.tolist() == [4, 4, 0, 3]
    assert t.tolist() == [0.75, 0.75, 0, 1]


STEPS = {"classic": classic(10), "minimax": minimax(10, 1e-3), "one step": classic(1)}


def iterate(coefficients, x, inverse):
    y, z = x, mpmath.mpf(1)
    for a, b in coefficients:
        w = a - b * z * y
        y, z = y * w, z * w
    return z if inverse else y


@pytest.mark.parametrize(
    "pair", [(0.3, 0.1), (0.3, 0.3 * (1 - 1e-9)), (0.9, 1e-4), (1e-5, 2e-5), (0.4, 0.0), (1.0, 1e-12)]
)
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_newton_schulz(steps, inverse, pair):
    coefficients = STEPS[steps]
    f = Iteration(cubic_steps(coefficients), inverse=inverse)
    a, b = number(pair[0]), number(pair[1])
    with mpmath.workdps(60):
        exact = float(iterate(coefficients, mpmath.mpf(pair[0]), inverse))
        derivative = float(mpmath.diff(lambda x: iterate(coefficients, x, inverse), mpmath.mpf(pair[0])))
    allowed = len(coefficients) * ROUNDINGS
    assert f.value(a).item() == pytest.approx(exact, rel=allowed, abs=0)
    assert f.divided_difference(a, b).item() == pytest.approx(
        quotient(lambda x: iterate(coefficients, x, inverse), a, b), rel=allowed
    )
    assert f.divided_difference(b, a).item() == pytest.approx(f.divided_difference(a, b).item(), rel=allowed, abs=0)
    assert f.divided_difference(a, a).item() == pytest.approx(derivative, rel=allowed, abs=0)

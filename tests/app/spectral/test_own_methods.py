"""Methods, gradient rules and scalar functions that are defined outside of the package."""

from __future__ import annotations

from dataclasses import dataclass

import mpmath
import pytest
import torch
import torch.utils.checkpoint

from app.spectral import (
    METHODS,
    Execution,
    FailureCounts,
    Method,
    ScalarFunction,
    SpectralFunction,
    SquareRoot,
    SVDPade,
    SVDWithRule,
    covariance,
    covariance_function,
    covariance_sqrt,
    find_method,
    matrix_function,
    matrix_sqrt,
    register_method,
)

SPECTRUM = [1.0, 0.6, 0.3, 0.1]


@dataclass(frozen=True)
class Damped(Method):
    """The exact gradient, with pairs of eigenvalues damped by a factor."""

    factor: float = 0.5

    def rule(self, f, a, b):
        return self.factor * f.divided_difference(a, b)


@dataclass(frozen=True)
class LogOnePlus(ScalarFunction):
    """f = log(c + l), which is not zero at zero."""

    c: float = 2.0

    def value(self, a):
        return torch.log(self.c + a)

    def divided_difference(self, a, b):
        difference = a - b
        quotient = torch.log1p(difference / (self.c + b)) / difference
        return torch.where(difference == 0, 1 / (self.c + a), quotient)


@dataclass(frozen=True)
class Reciprocal(ScalarFunction):
    defined_at_zero = False

    def value(self, a):
        return 1 / a

    def divided_difference(self, a, b):
        return -1 / (a * b)


def exact(f, a, b):
    return f.divided_difference(a, b)


@pytest.fixture
def registered():
    register_method("damped", Damped)
    yield "damped"
    del METHODS["damped"]


def test_a_rule_of_your_own(features, normal, backprop, relative_error):
    X, G = features(SPECTRUM, 6, 5), normal(6, 6)
    expected = backprop(covariance_sqrt, X, G)
    wrapped = backprop(lambda X: covariance_sqrt(X, SVDWithRule(exact)), X, G)
    assert relative_error(wrapped[1], expected[1]) == 0
    # a factor of one half leaves the diagonal, f'(l), and halves the rest: twice that less the diagonal is the whole
    half, none = (backprop(lambda X, c=c: covariance_sqrt(X, Damped(c)), X, G)[1] for c in (0.5, 0.0))
    assert relative_error(2 * half - none, expected[1]) < 1e-13


def test_a_registered_name_is_known_everywhere(registered, features):
    X = features(SPECTRUM, 6, 5)
    assert torch.equal(covariance_sqrt(X, registered, factor=0.1), covariance_sqrt(X, Damped(0.1)))
    assert find_method("damped", {"factor": 0.1}) == Damped(0.1)
    with pytest.raises(ValueError, match=r"damped takes no option 'iterations' \(it takes factor\)"):
        covariance_sqrt(X, registered, iterations=3)
    with pytest.raises(ValueError, match="did you mean damped"):
        covariance_sqrt(X, "dampd")
    register_method("damped", Damped)  # a module that is imported twice


@pytest.mark.parametrize(
    ("name", "method", "error", "message"),
    [
        ("svd-pade", Damped, ValueError, "there is already a method 'svd-pade'"),
        ("gap", Damped, ValueError, "there is already a method 'gap'"),
        ("new", exact, TypeError, "is not a class derived from Method"),
        ("new", Damped(), TypeError, "is not a class derived from Method"),
    ],
)
def test_names_that_cannot_be_registered(name, method, error, message):
    before = dict(METHODS)
    with pytest.raises(error, match=message):
        register_method(name, method)
    assert before == METHODS


def test_options_belong_to_names(with_spectrum):
    P = with_spectrum(SPECTRUM)
    assert torch.equal(matrix_sqrt(P, SVDPade(degree=20)), matrix_sqrt(P, "svd-pade", pade_degree=20))
    with pytest.raises(ValueError, match=r"SVDPade\(degree=100\) already has its options: set pade_degree"):
        matrix_sqrt(P, SVDPade(), pade_degree=20)


def test_execution_is_an_object_or_options(features):
    X, counts, seen = features(SPECTRUM, 6, 5), FailureCounts(), []
    execution = Execution(torch.float32, "eigenbasis", counts, seen.append)
    whole = covariance_sqrt(X, execution=execution)
    parts = covariance_sqrt(X, dtype=torch.float32, route="eigenbasis", counts=counts, observer=seen.append)
    assert torch.equal(whole, parts)
    assert counts.calls == len(seen) == 2
    assert torch.equal(*seen)
    # options win over the object
    assert covariance_sqrt(X, execution=execution, dtype=torch.float64, observer=None).dtype == torch.float64
    assert (counts.calls, len(seen)) == (3, 2)


@pytest.mark.parametrize(("d", "N"), [(6, 5), (4, 9)])
def test_a_function_that_is_not_zero_at_zero(d, N, features, in_high_precision, relative_error):
    X = features(SPECTRUM, d, N)
    Q = covariance_function(X, LogOnePlus())
    assert relative_error(Q, in_high_precision(X, lambda a, _: mpmath.log(2 + a), centre=True)) < 1e-14
    assert relative_error(Q, matrix_function(covariance(X), LogOnePlus())) < 1e-13
    assert torch.autograd.gradcheck(lambda X: covariance_function(X, LogOnePlus()), X.requires_grad_())


def test_a_function_that_is_not_defined_at_zero(features, with_spectrum, relative_error):
    P = with_spectrum(SPECTRUM)
    assert relative_error(matrix_function(P, Reciprocal()), torch.linalg.inv(P)) < 1e-13
    with pytest.raises(ValueError, match="P is singular: raise eps"):
        matrix_function(torch.zeros(2, 2), Reciprocal())
    with pytest.raises(ValueError, match=r"the covariance is singular, and Reciprocal\(\) is not defined at zero"):
        covariance_function(features(SPECTRUM, 6, 5), Reciprocal())
    with pytest.raises(ValueError, match="svd-topn sets eigenvalues to zero"):
        matrix_function(P, Reciprocal(), "svd-topn")


def test_covariance(features, normal, backprop, relative_error):
    X, G = features(SPECTRUM, 6, 5).repeat(2, 1, 1), normal(2, 6, 6)

    def plain(X):
        Y = X - X.mean(-1, keepdim=True)
        return Y @ Y.mT / X.shape[-1]

    for own, expected in zip(backprop(covariance, X, G), backprop(plain, X, G), strict=True):
        assert relative_error(own, expected) < 1e-14
    with pytest.raises(FloatingPointError, match="1 of 1 samples"):
        covariance(torch.full((3, 4), torch.nan))


def test_only_the_exact_square_root_can_be_differentiated_twice():
    assert SpectralFunction(SquareRoot(), find_method("svd-exact")).twice_differentiable
    assert not SpectralFunction(SquareRoot(), find_method("svd-pade")).twice_differentiable
    assert not SpectralFunction(LogOnePlus(), find_method("svd-exact")).twice_differentiable


@pytest.mark.parametrize("layer", [covariance_sqrt, lambda X: covariance_sqrt(X, "isqrt-cov", route="products")])
def test_saved_tensors_are_read_once(layer, normal):
    # non-reentrant checkpointing recomputes them at the first reading, and allows no other
    X = normal(2, 6, 5).requires_grad_()
    (expected,) = torch.autograd.grad(layer(X).sum(), X)
    Q = torch.utils.checkpoint.checkpoint(layer, X, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(Q.sum(), X)[0], expected)

"""The backward pass of every layer whose rule is a true gradient equals finite differences, to the second order."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from app.spectral import (
    METHODS,
    covariance_power,
    covariance_sqrt,
    matrix_inverse_sqrt,
    matrix_log,
    matrix_power,
    matrix_sqrt,
)

# neighbours at a ratio of 0.65: the Taylor rule is then off by 0.65^101 = 1e-19, the clip of the truncated one is far
# away; and the smallest one is a tenth of the trace, where 10 Newton-Schulz steps (svd-newton) are exact to round-off
SEPARATED = [1.0, 0.65, 0.42, 0.27]
REPEATED = [2.0, 2.0, 2.0, 1.0]

FUNCTIONS = {
    "sqrt": matrix_sqrt,
    "inverse_sqrt": matrix_inverse_sqrt,
    "power": lambda P, method, **options: matrix_power(P, 0.3, method, **options),
    "log": matrix_log,
}
BY_SVD = ["mpn-cov", "svd-trunc", "svd-taylor", "svd-pade", "svd-exact"]
NEWTON_SCHULZ = [("isqrt-cov", "eigenbasis"), ("isqrt-cov", "products")]
NEWTON_SCHULZ += [("ns-minimax", "eigenbasis"), ("ns-minimax", "products")]
NEWTON_SCHULZ += [("svd-halley", "eigenbasis"), ("svd-halley", "products")]

TRUE_GRADIENTS = [(f, m, "auto") for f in FUNCTIONS for m in BY_SVD]
TRUE_GRADIENTS += [(f, "svd-topn", "auto") for f in ("sqrt", "power")]  # keeps all four eigenvalues
TRUE_GRADIENTS += [(f, "svd-newton", "auto") for f in ("sqrt", "inverse_sqrt")]
TRUE_GRADIENTS += [(f, *row) for f in ("sqrt", "inverse_sqrt") for row in NEWTON_SCHULZ]

# rules that are also right where eigenvalues coincide
ANYWHERE = [(f, "svd-exact", "auto") for f in FUNCTIONS]
ANYWHERE += [(f, *row) for f in ("sqrt", "inverse_sqrt") for row in NEWTON_SCHULZ]


def probe(function, P):
    """Finite differences of ``function(B B^T)`` at ``B B^T = P``: B may move anywhere, the matrix stays symmetric."""
    return gradcheck(lambda B: function(B @ B.mT), torch.linalg.cholesky(P).requires_grad_())


@pytest.mark.parametrize(("function", "method", "route"), TRUE_GRADIENTS)
def test_separated_eigenvalues(function, method, route, with_spectrum):
    assert probe(lambda P: FUNCTIONS[function](P, method, route=route), with_spectrum(SEPARATED))


@pytest.mark.parametrize("eigenvalues", [REPEATED, [3.0, 3.0, 3.0]])
@pytest.mark.parametrize(("function", "method", "route"), ANYWHERE)
def test_repeated_eigenvalues(function, method, route, eigenvalues, with_spectrum):
    assert probe(lambda P: FUNCTIONS[function](P, method, route=route), with_spectrum(eigenvalues))


@pytest.mark.parametrize("method", ["isqrt-cov", "ns-minimax", "svd-halley"])
@pytest.mark.parametrize("route", ["eigenbasis", "products"])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_number_of_iterations(method, route, iterations, with_spectrum):
    P = with_spectrum(SEPARATED)
    assert probe(lambda P: matrix_sqrt(P, method, iterations=iterations, route=route), P)
    assert probe(lambda P: matrix_inverse_sqrt(P, method, iterations=iterations, route=route), P)


# (d, N, eigenvalues): with N <= d the centred features have rank N - 1, so the covariance is singular, and yet the
# function is smooth in the features; the last two are the same with coinciding eigenvalues
SIDES = {
    "fewer positions": (5, 4, SEPARATED[:3]),
    "as many positions": (4, 4, SEPARATED[:3]),
    "more positions": (3, 5, SEPARATED[:3]),
    "fewer positions, repeated": (5, 4, REPEATED[:3]),
    "more positions, repeated": (3, 5, REPEATED[:3]),
}
ON_FEATURES = [(s, m, "auto") for s in SIDES for m in ("svd-exact",)]
ON_FEATURES += [(s, m, "auto") for s in list(SIDES)[:3] for m in (*BY_SVD, "svd-topn", "svd-newton")]
ON_FEATURES += [(s, *row) for s in SIDES for row in NEWTON_SCHULZ]


@pytest.mark.parametrize(("side", "method", "route"), list(dict.fromkeys(ON_FEATURES)))
def test_features(side, method, route, features):
    d, N, eigenvalues = SIDES[side]
    X = features(eigenvalues, d, N).requires_grad_()
    assert gradcheck(lambda X: covariance_sqrt(X, method, route=route), X)


@pytest.mark.parametrize("method", [*BY_SVD, "svd-topn"])
@pytest.mark.parametrize("side", list(SIDES)[:3])
def test_features_to_a_power(side, method, features):
    d, N, eigenvalues = SIDES[side]
    X = features(eigenvalues, d, N).requires_grad_()
    assert gradcheck(lambda X: covariance_power(X, 0.7, method), X)


@pytest.mark.parametrize("eigenvalues", [SEPARATED, REPEATED])
def test_second_derivative_of_the_exact_root(eigenvalues, with_spectrum):
    B = torch.linalg.cholesky(with_spectrum(eigenvalues)).requires_grad_()
    assert gradgradcheck(lambda B: matrix_sqrt(B @ B.mT), B)


def test_third_derivative_of_the_exact_root():
    # sqrt(x) for the 1 x 1 matrix x: 3/8 x^(-5/2)
    x = torch.full((1, 1), 4.0, dtype=torch.float64, requires_grad=True)
    y = matrix_sqrt(x)
    for _ in range(3):
        (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    assert y.item() == pytest.approx(3 / 8 / 32, rel=1e-14, abs=0)


ONCE = [("sqrt", m, "auto") for m in METHODS if m != "svd-exact"]
ONCE += [("sqrt", "isqrt-cov", "products"), ("sqrt", "ns-minimax", "products"), ("sqrt", "svd-halley", "products")]
ONCE += [(f, "svd-exact", "auto") for f in FUNCTIONS if f != "sqrt"]


@pytest.mark.parametrize(("function", "method", "route"), ONCE)
def test_no_wrong_second_derivative(function, method, route, with_spectrum):
    P = with_spectrum(SEPARATED).requires_grad_()
    Q = FUNCTIONS[function](P, method, route=route)
    (gradient,) = torch.autograd.grad(Q.square().sum(), P, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once"):
        gradient.sum().backward()


@pytest.mark.parametrize("method", METHODS)
def test_no_wrong_second_derivative_of_features(method, features):
    X = features(SEPARATED[:3], 5, 4).requires_grad_()
    (gradient,) = torch.autograd.grad(covariance_sqrt(X, method).square().sum(), X, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once"):
        gradient.sum().backward()


@pytest.mark.parametrize(("function", "method", "route"), ONCE)
def test_a_gradient_penalty_is_refused_and_not_dropped(function, method, route, with_spectrum):
    # asked for the inputs it needs, autograd skips what does not lead to them: the refusal has to
    P = with_spectrum(SEPARATED).requires_grad_()
    loss = FUNCTIONS[function](P, method, route=route).sum()
    (gradient,) = torch.autograd.grad(loss, P, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once"):
        torch.autograd.grad(loss + gradient.square().sum(), P)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_penalty_of_features_is_refused_and_not_dropped(method, features):
    X = features(SEPARATED[:3], 5, 4).requires_grad_()
    loss = covariance_sqrt(X, method).sum()
    (gradient,) = torch.autograd.grad(loss, X, create_graph=True)
    with pytest.raises(RuntimeError, match=r"twice|once"):
        torch.autograd.grad(loss + gradient.square().sum(), X)


ALL_ON_MATRICES = [("sqrt", m, "auto") for m in METHODS] + [("sqrt", *row) for row in NEWTON_SCHULZ]
ALL_ON_MATRICES += [("inverse_sqrt", m, "auto") for m in METHODS if m != "svd-topn"]


@pytest.mark.parametrize(("function", "method", "route"), list(dict.fromkeys(ALL_ON_MATRICES)))
def test_gradient_of_a_symmetric_argument_is_symmetric(
    function, method, route, with_spectrum, normal, backprop, relative_error
):
    P, G = with_spectrum(SEPARATED), normal(4, 4)
    _, gradient = backprop(lambda P: FUNCTIONS[function](P, method, route=route), P, G)
    _, of_symmetric_part = backprop(lambda P: FUNCTIONS[function](P, method, route=route), P, (G + G.T) / 2)
    # a chain of a few 4 x 4 products at condition numbers below 10
    tolerance = 10 * 4 * 10 * torch.finfo(P.dtype).eps
    assert relative_error(gradient, gradient.T) < tolerance
    assert relative_error(gradient, of_symmetric_part) < tolerance


@pytest.mark.parametrize("route", ["eigenbasis", "products"])
@pytest.mark.parametrize("function", ["sqrt", "inverse_sqrt"])
def test_backward_can_run_again(function, route, with_spectrum, normal):
    # in-place arithmetic of the backward pass must leave what is saved, and the upstream gradient, as they were
    P, G = with_spectrum(SEPARATED).requires_grad_(), normal(4, 4)
    kept = G.clone()
    Q = FUNCTIONS[function](P, "ns-minimax", route=route)
    first, second = (torch.autograd.grad(Q, P, G, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(G, kept)


@pytest.mark.parametrize(("d", "N"), [(5, 4), (3, 6)])
@pytest.mark.parametrize("method", METHODS)
def test_backward_of_features_can_run_again(method, d, N, features, normal):
    X, G = features(SEPARATED[:3], d, N).requires_grad_(), normal(d, d)
    kept = G.clone()
    Q = covariance_sqrt(X, method)
    value = Q.detach().clone()
    first, second = (torch.autograd.grad(Q, X, G, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(G, kept)
    assert torch.equal(Q, value)

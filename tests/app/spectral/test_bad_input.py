"""Bad input is answered with one line that names what is wrong."""

from __future__ import annotations

import re

import pytest
import torch

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

EYE = torch.eye(3, dtype=torch.float64)
X = torch.arange(12, dtype=torch.float64).reshape(3, 4).sin()
OF_MATRICES = {
    "sqrt": matrix_sqrt,
    "inverse_sqrt": matrix_inverse_sqrt,
    "power": lambda P, *a, **k: matrix_power(P, 0.5, *a, **k),
    "log": matrix_log,
}
OF_FEATURES = {"sqrt": covariance_sqrt, "power": lambda X, *a, **k: covariance_power(X, 0.5, *a, **k)}
ALL = {
    **{f"matrix_{name}": (f, EYE) for name, f in OF_MATRICES.items()},
    **{f"covariance_{name}": (f, X) for name, f in OF_FEATURES.items()},
}


def refused(error, message, function, *args, **kwargs):
    with pytest.raises(error, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def with_entry(x, value):
    x = x.clone()
    x[..., 1, 1] = value
    return x


@pytest.mark.parametrize("name", OF_MATRICES)
@pytest.mark.parametrize(
    ("P", "error", "message"),
    [
        (torch.ones(3, 4), ValueError, r"must be square, got shape \(3, 4\)"),
        (torch.ones(2, 0, 0), ValueError, r"must be square, got shape \(2, 0, 0\)"),
        (torch.ones(3), ValueError, r"at least two dimensions, got shape \(3,\)"),
        (torch.ones(()), ValueError, r"at least two dimensions, got shape \(\)"),
        (torch.eye(3, dtype=torch.int64), TypeError, "must be floating point, got torch.int64"),
        (torch.eye(3, dtype=torch.complex64), TypeError, "must be floating point, got torch.complex64"),
        (torch.tensor([[2.0, 1.0], [0.5, 2.0]]), ValueError, r"must be symmetric: .* 0.5 at .* 2"),
        (EYE + torch.tensor([[0, 1e-6, 0], [0, 0, 0], [0, 0, 0]]), ValueError, "must be symmetric"),
        (with_entry(EYE, float("nan")), FloatingPointError, "non-finite"),
        (with_entry(EYE, float("inf")), FloatingPointError, "non-finite"),
        (torch.stack([EYE, with_entry(EYE, float("nan"))]), FloatingPointError, "non-finite"),
        (with_entry(EYE, -0.5), ValueError, r"must be positive semi-definite: .* -0.5"),
        (torch.stack([EYE, with_entry(EYE, -1e-3)]), ValueError, r"must be positive semi-definite: .* -0.001"),
    ],
)
def test_matrices(name, P, error, message):
    refused(error, "matri.* " + message, OF_MATRICES[name], P)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("small", [with_entry(EYE, -0.5), EYE + torch.ones(3, 3).triu(1)])
def test_bad_matrix_beside_a_large_one(small, method):
    # round-off is relative to the matrix it is found in, not to its neighbours in the batch
    refused(
        ValueError, "must be (symmetric|positive semi-definite)", matrix_sqrt, torch.stack([small, 1e10 * EYE]), method
    )


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_off_is_no_fault(dtype, scale):
    # an asymmetry and a negative eigenvalue of a few eps, as products leave them
    eps, counts = torch.finfo(dtype).eps, FailureCounts()
    P = torch.tensor([[1.0, 4 * eps, 0.0], [0.0, -4 * eps, 0.0], [0.0, 0.0, 1.0]], dtype=dtype) * scale
    Q = matrix_sqrt(P, counts=counts)
    # no decomposition is to blame for what is in the input
    assert counts == FailureCounts(calls=1)
    # an error of e in P is one of sqrt(e) in its root, at most
    torch.testing.assert_close(
        Q, scale**0.5 * torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=dtype)), rtol=0, atol=(scale * 10 * eps) ** 0.5
    )


@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("method", ["svd-exact", "svd-pade"])
@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (torch.ones(3), ValueError, r"features need at least two dimensions, got shape \(3,\)"),
        (torch.ones(2, 3, 4, dtype=torch.int32), TypeError, "features must be floating point, got torch.int32"),
        (torch.ones(2, 0, 4), ValueError, r"at least one channel and one position .* \(2, 0, 4\)"),
        (torch.ones(2, 3, 0), ValueError, r"at least one channel and one position .* \(2, 3, 0\)"),
        (torch.stack([X, with_entry(X, float("nan"))]), FloatingPointError, "1 of 2 samples have non-finite features"),
        (torch.stack([X, with_entry(X, float("inf"))]), FloatingPointError, "1 of 2 samples have non-finite features"),
        (torch.stack([X, 1e200 * X]), FloatingPointError, "1 of 2 samples have non-finite .* covariances"),
    ],
)
def test_features(name, method, X, error, message):
    refused(error, message, OF_FEATURES[name], X, method)


@pytest.mark.parametrize("route", ["eigenbasis", "products"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_of_both_routes(value, route):
    for method in ("isqrt-cov", "ns-minimax", "svd-halley"):
        refused(FloatingPointError, "1 of 1 samples", covariance_sqrt, with_entry(X, value), method, route=route)
        refused(FloatingPointError, "non-finite", matrix_sqrt, with_entry(EYE, value), method, route=route)


INVERTING = [("inverse_sqrt", m) for m in METHODS if m not in ("svd-topn", "isqrt-cov", "ns-minimax", "svd-halley")]
INVERTING += [("log", m) for _, m in INVERTING if m != "svd-newton"]


@pytest.mark.parametrize(("name", "method"), INVERTING)
@pytest.mark.parametrize("smallest", [0.0, 1e-17, 1e-16, -1e-17])
def test_singular_matrix_without_a_shift(name, method, smallest):
    # an eigenvalue below n eps l_max is zero for all that float64 can tell, on whichever side of it round-off falls
    P = torch.diag(torch.tensor([1.0, 0.5, smallest], dtype=torch.float64))
    refused(ValueError, r"P \+ eps I must be positive definite, .*: raise eps", OF_MATRICES[name], P, method, eps=0.0)
    assert OF_MATRICES[name](P, method).isfinite().all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("method", "hint"), [("svd-pad", "did you mean svd-pade? "), ("", ""), ("gap", "")])
def test_unknown_method(name, method, hint):
    function, x = ALL[name]
    message = re.escape(f"unknown method {method!r}: {hint}choose one of mpn-cov, isqrt-cov")
    refused(ValueError, message, function, x, method)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("method", "option", "takes"),
    [
        ("svd-exact", "iterations", "none"),
        ("mpn-cov", "topn", "none"),
        ("svd-taylor", "pade_degree", "taylor_degree"),
        ("svd-pade", "taylor_degree", "pade_degree"),
        ("svd-trunc", "limit", "trunc_limit"),
        ("isqrt-cov", "floor", "iterations"),
        ("ns-minimax", "topn", "iterations, floor"),
        ("svd-topn", "f", "topn"),
    ],
)
def test_option_of_another_method(name, method, option, takes):
    function, x = ALL[name]
    refused(
        ValueError, rf"^{method} takes no option '{option}' \(it takes {takes}\)$", function, x, method, **{option: 3}
    )


@pytest.mark.parametrize("name", ["matrix_sqrt", "matrix_power", "covariance_sqrt", "covariance_power"])
def test_eps_where_nothing_is_inverted(name):
    function, x = ALL[name]
    refused(ValueError, "svd-exact takes no option 'eps'", function, x, eps=1e-5)


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {
    ("isqrt-cov", "iterations"): [0, -2, 2.5, True],
    ("ns-minimax", "iterations"): [0, -2, 2.5],
    ("svd-halley", "iterations"): [0, -2, 2.5],
    ("ns-minimax", "floor"): [0.0, -1e-3, 1.0, 1.5, NAN],
    ("svd-newton", "iterations"): [0, 10.0],
    ("svd-topn", "topn"): [0, -1, 2.5],
    ("svd-trunc", "trunc_limit"): [0.0, -1.0, NAN],
    ("svd-pi", "taylor_degree"): [0, 2.5],
    ("svd-taylor", "taylor_degree"): [-1, 2.5],
    ("svd-pade", "pade_degree"): [0, -2, 51, 2.5],
    ("svd-exact", "dtype"): [torch.float16, "float64"],
}


@pytest.mark.parametrize(
    ("method", "option", "value"), [(*key, v) for key, values in OUT_OF_RANGE.items() for v in values]
)
def test_value_out_of_range(method, option, value):
    message = f"{option} .*must .*got .?{re.escape(str(value))}"
    refused(ValueError, message, matrix_sqrt, EYE, method, **{option: value})
    refused(ValueError, message, covariance_sqrt, X, method, **{option: value})


@pytest.mark.parametrize(
    ("method", "route", "message"),
    [
        ("isqrt-cov", "gpu", "unknown route 'gpu': choose auto, eigenbasis or products"),
        ("svd-exact", "products", "route 'products' is for the iterations"),
        ("svd-newton", "products", "route 'products' is for the iterations"),
    ],
)
def test_wrong_route(method, route, message):
    refused(ValueError, message, matrix_sqrt, EYE, method, route=route)
    refused(ValueError, message, covariance_sqrt, X, method, route=route)


@pytest.mark.parametrize("function", [matrix_inverse_sqrt, matrix_log])
@pytest.mark.parametrize("eps", [-1e-9, -1.0, NAN, INF])
def test_eps_out_of_range(function, eps):
    refused(ValueError, f"eps must .*, got {eps}", function, EYE, eps=eps)


@pytest.mark.parametrize(("function", "x"), [(matrix_power, EYE), (covariance_power, X)])
@pytest.mark.parametrize("alpha", [0.0, -0.5, NAN, INF])
def test_alpha_out_of_range(function, x, alpha):
    refused(ValueError, f"alpha must .*positive.*, got {alpha}", function, x, alpha)


@pytest.mark.parametrize("method", ["isqrt-cov", "ns-minimax", "svd-newton", "svd-halley"])
def test_iteration_for_another_function(method):
    message = "the iteration is defined for the square root and its inverse only"
    refused(ValueError, message, matrix_power, EYE, 0.5, method)
    refused(ValueError, message, covariance_power, X, 0.5, method)
    refused(ValueError, message, matrix_log, EYE, method)


@pytest.mark.parametrize("function", [matrix_inverse_sqrt, matrix_log])
def test_topn_for_a_function_without_a_value_at_zero(function):
    refused(
        ValueError, "svd-topn sets eigenvalues to zero, where this function is not defined", function, EYE, "svd-topn"
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_functional_transforms_are_answered_with_what_to_use(name, transform):
    function, x = ALL[name]
    if transform == "vmap":
        apply = lambda: torch.func.vmap(function)(x[None])  # noqa: E731
    else:
        apply = lambda: torch.func.grad(lambda x: function(x).sum())(x)  # noqa: E731
    with pytest.raises(RuntimeError, match=r"these take batch dimensions themselves, and torch\.autograd"):
        apply()

"""Half and single precision around the layer change its input and its output, not what happens inside."""

from __future__ import annotations

import pytest
import torch

from app.spectral import METHODS, covariance_sqrt, matrix_inverse_sqrt, matrix_sqrt

SPECTRUM = [1.0, 0.7, 0.4, 0.2]
SIDES = [(7, 5), (4, 9)]
ROUTES = [(m, "auto") for m in METHODS] + [
    ("isqrt-cov", "products"),
    ("ns-minimax", "products"),
    ("svd-halley", "products"),
]
LOW = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_features_in_low_precision(method, route, d, N, dtype, features, normal, backprop):
    # the same float64 arithmetic, rounded once at the end: equal, or neighbours where float64 lies between the two
    X, G = features(SPECTRUM, d, N).to(dtype), normal(d, d).to(dtype)
    layer = lambda X: covariance_sqrt(X, method, route=route)  # noqa: E731
    value, gradient = backprop(layer, X, G)
    expected = backprop(layer, X.double(), G.double())
    assert value.dtype == gradient.dtype == dtype
    for low, high in zip((value, gradient), expected, strict=True):
        roundoff = 10 * N * torch.finfo(torch.float64).eps * high.abs().max().item()
        torch.testing.assert_close(low.double(), high.to(dtype).double(), rtol=torch.finfo(dtype).eps, atol=roundoff)


@pytest.mark.parametrize("dtype", [*LOW, torch.float64])
@pytest.mark.parametrize("d", [4, 32, 160])
def test_matrices_in_low_precision(d, dtype, with_spectrum):
    # rounding P moves it by at most u |P|_F, its square root by the square root of that; as much again for whatever
    # is taken for zero because P does not resolve it, and for the rounding of the result
    exact = with_spectrum(torch.logspace(0, -3, d, dtype=torch.float64))
    Q = matrix_sqrt(exact.to(dtype))
    u = torch.finfo(dtype).eps / 2
    assert Q.dtype == dtype
    error = torch.linalg.matrix_norm(Q.double() - matrix_sqrt(exact), ord=2)
    assert error <= 3 * (u * torch.linalg.matrix_norm(exact)) ** 0.5


@pytest.mark.parametrize("dtype", LOW)
def test_inverse_in_low_precision(dtype, with_spectrum):
    # relative to Q: condition number 5 times the rounding of P and Q each, of two factors Q
    P = with_spectrum(SPECTRUM).to(dtype)
    Q = matrix_inverse_sqrt(P)
    assert Q.dtype == dtype
    residual = Q.double() @ (P.double() + 1e-5 * torch.eye(4)) @ Q.double() - torch.eye(4)
    assert torch.linalg.matrix_norm(residual) <= 4 * 5 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("d", "N"), SIDES)
@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_spectral_part_in_single_precision(method, route, d, N, features, normal, backprop, relative_error):
    X, G = features(SPECTRUM, d, N).float(), normal(d, d).float()
    options = {"taylor_degree": 5} if method == "svd-pi" else {}
    value, gradient = backprop(lambda X: covariance_sqrt(X, method, dtype=torch.float32, route=route, **options), X, G)
    expected = backprop(lambda X: covariance_sqrt(X, method, route=route, **options), X, G)
    # n eps l_max / gap, a hundredfold of it for rules of that degree and for the null space of the products, where the
    # tangents of a Halley step grow by 3^2
    growth = 9**5 if (method, route) == ("svd-halley", "products") else 100
    tolerance = 9 * torch.finfo(torch.float32).eps / 0.2 * growth
    assert value.dtype == gradient.dtype == torch.float32
    assert 0 < relative_error(value, expected[0]) < tolerance  # 0 would mean that the option is ignored
    assert relative_error(gradient, expected[1]) < tolerance


@pytest.mark.parametrize("layer", [matrix_sqrt, matrix_inverse_sqrt])
@pytest.mark.parametrize("spectral", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [*LOW, torch.float64])
def test_singular_matrix_in_any_precision(dtype, spectral, layer, normal, relative_error):
    # the zeros come back as round-off of either sign, of the coarser of the two precisions
    B = normal(40, 10)
    P = (B @ B.T).to(dtype)
    Q = layer(P, dtype=spectral)
    eps = max(torch.finfo(dtype).eps, torch.finfo(spectral).eps)
    if layer is matrix_sqrt:
        # an error of n eps in P is one of its square root in Q
        assert relative_error(Q.double(), layer(B @ B.T)) < (40 * eps) ** 0.5
    else:
        assert Q.isfinite().all()


@pytest.fixture
def dtypes_decomposed(monkeypatch):
    dtypes, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda A: dtypes.append(A.dtype) or eigh(A))
    return dtypes


@pytest.mark.parametrize("dtype", [*LOW, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("d", "N"), SIDES)
def test_nothing_low_is_decomposed(d, N, autocast, dtype, features, dtypes_decomposed):
    X = features(SPECTRUM, d, N).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        covariance_sqrt(X)
        matrix_sqrt((X @ X.mT).to(dtype))
        assert dtypes_decomposed == [torch.float64] * 2
        covariance_sqrt(X, dtype=torch.float32)
        assert dtypes_decomposed[2:] == [torch.float32]


@pytest.mark.parametrize("spectral", [torch.float64, torch.float32])
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize("function", ["features", "matrix", "inverse"])
@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_autocast_changes_nothing(method, route, function, backward_inside, spectral, features, normal):
    options = {"dtype": spectral, "route": route}
    if method == "svd-pi":
        options["taylor_degree"] = 5  # the powers of degree 100 overflow in float32
    X, G = features(SPECTRUM, 4, 9).float(), normal(4, 4).float()
    if function == "inverse" and method == "svd-topn":
        function = "matrix"  # the inverse is not defined
    x = (X if function == "features" else X @ X.mT).requires_grad_()
    layer = {"features": covariance_sqrt, "matrix": matrix_sqrt, "inverse": matrix_inverse_sqrt}[function]
    value = layer(x, method, **options)
    (gradient,) = torch.autograd.grad(value, x, G)
    with torch.autocast("cpu", torch.bfloat16):
        value_inside = layer(x, method, **options)
    # PyTorch advises against a backward pass inside the context, but nothing forbids it
    with torch.autocast("cpu", torch.bfloat16, enabled=backward_inside):
        (gradient_inside,) = torch.autograd.grad(value_inside, x, G)
    assert value_inside.dtype == gradient_inside.dtype == torch.float32
    assert torch.equal(value_inside, value)
    assert torch.equal(gradient_inside, gradient)

"""Matrices and features whose spectrum the test chooses, and the two or three things every test does with them.

None of them is aligned in memory: results of the backend's kernels depend on that, and tests must not.

Shapes: d channels, N positions, r eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import pytest
import torch
from torch import Tensor


def _unaligned(x: Tensor) -> Tensor:
    """The same numbers one element after the start of their storage, where no wide register can load them aligned."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def _orthogonal(n: int, seed: int, first: Tensor | None = None) -> Tensor:
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if first is not None:
        A[:, 0] = first
    return torch.linalg.qr(A)[0]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Matrices of a few rows: waking a second thread takes longer than the product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def orthogonal():
    """A random orthogonal matrix, (n, n)."""
    return lambda n, seed=0: _orthogonal(n, seed)


@pytest.fixture(scope="session")
def with_spectrum():
    """A dense symmetric matrix with these eigenvalues, symmetric to the last bit."""

    def build(eigenvalues, seed: int = 0) -> Tensor:
        U = _orthogonal(len(eigenvalues), seed)
        P = U * torch.as_tensor(eigenvalues, dtype=torch.float64) @ U.T
        return _unaligned((P + P.T) / 2)

    return build


@pytest.fixture(scope="session")
def features():
    """Features (d, N) whose covariance has these r <= min(d, N - 1) nonzero eigenvalues, and a mean of one."""

    def build(eigenvalues, d: int, N: int, seed: int = 0) -> Tensor:
        r = len(eigenvalues)
        U = _orthogonal(d, seed)[:, :r]
        W = _orthogonal(N, seed + 1, first=torch.ones(N))[:, 1 : r + 1]  # orthogonal to the vector of ones: centred
        return _unaligned(N**0.5 * U * torch.as_tensor(eigenvalues, dtype=torch.float64).sqrt() @ W.T + 1)

    return build


@pytest.fixture(scope="session")
def normal():
    """A tensor of independent standard normal numbers in float64."""

    def build(*shape: int, seed: int = 0) -> Tensor:
        return _unaligned(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))

    return build


@pytest.fixture(scope="session")
def backprop():
    """Value and gradient of a function of one tensor, for an upstream gradient G; neither is aligned in memory."""

    def run(function: Callable[[Tensor], Tensor], x: Tensor, G: Tensor) -> tuple[Tensor, Tensor]:
        x, G = _unaligned(x.detach()).requires_grad_(), _unaligned(G)
        value = function(x)
        (gradient,) = torch.autograd.grad(value, x, G)
        return value.detach(), gradient

    return run


@pytest.fixture(scope="session")
def relative_error():
    """The largest deviation, relative to the largest number expected."""

    def compare(actual: Tensor, expected: Tensor) -> float:
        assert actual.shape == expected.shape
        error = (actual - expected).abs().max() / expected.abs().max()
        return error.item()

    return compare


@pytest.fixture(scope="session")
def in_high_precision():
    """``U f(diag(l)) U^T`` of a symmetric positive semi-definite matrix in 40 digits; f sees l and the trace."""

    def evaluate(P: Tensor, f: Callable, centre: bool = False) -> Tensor:
        with mpmath.workdps(40):
            A = mpmath.matrix(P.tolist())
            if centre:  # P are features: their covariance, also in 40 digits
                mean = A * mpmath.ones(A.cols, 1) / A.cols
                Y = A - mean * mpmath.ones(1, A.cols)
                A = Y * Y.T / A.cols
            trace = mpmath.fsum(A[i, i] for i in range(A.rows))
            values, U = mpmath.eigsy(A)
            # far below what float64 can tell from zero, far above the round-off of 40 digits
            values = [value if value > trace * mpmath.mpf(10) ** -30 else mpmath.mpf(0) for value in values]
            Q = U * mpmath.diag([f(value, trace) for value in values]) * U.T
            return torch.tensor([[float(Q[i, j]) for j in range(A.rows)] for i in range(A.rows)], dtype=torch.float64)

    return evaluate

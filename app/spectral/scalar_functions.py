"""The scalar functions f of the matrix functions: their values and their divided differences.

    f[a, b] = (f(a) - f(b)) / (a - b)  for a != b,      f[a, a] = f'(a)

Every formula here is written without that quotient, so it is accurate for equal and for nearly equal arguments.
Arguments are non-negative tensors that broadcast against each other.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class ScalarFunction(ABC):
    """A function f of the eigenvalues. Derive from it to add a matrix function of your own.

    Attributes:
        defined_at_zero: whether f(0) is finite. If not, singular matrices are an error.
        trace_degree: ``None`` evaluates f at the eigenvalues of P. A number h evaluates it at those of P / tr(P) and
            multiplies by tr(P)^h, as Newton-Schulz iterations need (Song et al., ICCV 2021, eq. 8 and 9).
    """

    @property
    def defined_at_zero(self) -> bool:
        """Whether f(0) is finite."""
        return True

    @property
    def trace_degree(self) -> float | None:
        """The power of the trace that scales the result, or ``None``; see the class."""
        return None

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """f(a)."""

    @abstractmethod
    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        """f[a, b], and f'(a) where a = b; 0 where that is infinite (the minimum-norm choice at a = b = 0)."""


@dataclass(frozen=True)
class SquareRoot(ScalarFunction):
    """f = sqrt(l):  f[a, b] = 1 / (sqrt(a) + sqrt(b)), with a singularity at a = b = 0 only."""

    def value(self, a: Tensor) -> Tensor:
        return a.sqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        return _reciprocal_or_zero(a.sqrt() + b.sqrt())


@dataclass(frozen=True)
class InverseSquareRoot(ScalarFunction):
    """f = 1 / sqrt(l):  f[a, b] = -1 / (sqrt(a) sqrt(b) (sqrt(a) + sqrt(b))), for positive arguments."""

    defined_at_zero = False

    def value(self, a: Tensor) -> Tensor:
        return a.rsqrt()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        root_a, root_b = a.sqrt(), b.sqrt()
        return (root_a + root_b).mul_(root_a * root_b).reciprocal_().neg_()


@dataclass(frozen=True)
class Power(ScalarFunction):
    """f = l^alpha (the general exponent of MPN-COV, Li et al., ICCV 2017).

    With h the larger argument and t = |a - b| / h:  f[a, b] = h^(alpha - 1) (1 - (1 - t)^alpha) / t. For t above 1/2
    the quotient of differences is the accurate one: 1 - t has lost digits of the smaller argument.

    Args:
        alpha: the exponent, positive and finite.

    Raises:
        ValueError: for any other exponent.
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {self.alpha}")

    def value(self, a: Tensor) -> Tensor:
        return a**self.alpha

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        high, t = relative_gap(a, b)
        near = high ** (self.alpha - 1) * torch.where(t > 0, -torch.expm1(self.alpha * torch.log1p(-t)) / t, self.alpha)
        far = (self.value(a) - self.value(b)) / (a - b)
        at_zero = float(self.alpha == 1)
        return torch.where(high > 0, torch.where(t > 0.5, far, near), at_zero)


@dataclass(frozen=True)
class Logarithm(ScalarFunction):
    """f = log(l + eps) (DeepO2P, Ionescu et al., ICCV 2015).

    f[a, b] = -log(1 - t) / (t h), with h, t as in `Power`, of the arguments a + eps and b + eps.

    Args:
        eps: added to the eigenvalues; without it, singular matrices are an error.

    Raises:
        ValueError: for a number that is negative or not finite.
    """

    eps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps < float("inf"):
            raise ValueError(f"eps must be a finite number of at least 0, got {self.eps}")

    @property
    def defined_at_zero(self) -> bool:
        return self.eps > 0

    def value(self, a: Tensor) -> Tensor:
        return (a + self.eps).log()

    def divided_difference(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = a + self.eps, b + self.eps
        high, t = relative_gap(a, b)
        near = torch.where(t > 0, -torch.log1p(-t) / t, 1) / high
        return torch.where(t > 0.5, (a.log() - b.log()) / (a - b), near)


def relative_gap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The larger argument h and ``t = |a - b| / h``, so that the smaller is ``h (1 - t)``; t = 0 where h = 0."""
    high = torch.maximum(a, b)
    return high, (a - b).abs_().div_(high.clamp_min(torch.finfo(high.dtype).tiny))


def _reciprocal_or_zero(a: Tensor) -> Tensor:
    # in place: these are (B, r, r) tensors on the hot path
    reciprocal = a.reciprocal()
    return reciprocal.masked_fill_(a == 0, 0)

"""The methods: how a function of a symmetric matrix is evaluated and differentiated, each with its options.

A method is a small frozen object, `SVDPade(degree=100)`. The names in `METHODS` are short for them. To add your own,
derive from `Method`, or wrap a gradient rule in `SVDWithRule`; `register_method` gives it a name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from . import gradients
from .gradients import Rule
from .halley import HalleyStep
from .iterations import Iteration, Step
from .newton_schulz import classic, cubic_steps, minimax, positive_integer
from .pade import pade_order
from .scalar_functions import InverseSquareRoot, ScalarFunction, SquareRoot


@dataclass(frozen=True)
class Method:
    """The base class of methods: the exact value and gradient of f. Methods override what they do differently.

    With ``P = U diag(l) U^T`` the layer computes ``U f(diag(l)) U^T``, and its gradient is ``U (D * M) U^T``, M being
    the symmetrised upstream gradient in the eigenbasis. A method chooses D.
    """

    def forward_function(self, f: ScalarFunction) -> ScalarFunction:
        """The scalar function of the forward pass: f itself, or an iteration that approximates it.

        Raises:
            ValueError: if the method is not defined for f.
        """
        return f

    def backward_function(self, f: ScalarFunction) -> ScalarFunction:
        """The scalar function that `rule` is applied to; by default that of the forward pass."""
        return self.forward_function(f)

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        """D for pairs of eigenvalues a, b that broadcast; its diagonal is replaced by f'(l)."""
        return gradients.exact(f, a, b)

    def kept(self, eigenvalues: Tensor) -> Tensor:
        """The eigenvalues ``(B, r)``, ascending, that the layer works with."""
        return eigenvalues


@dataclass(frozen=True)
class SVDExact(Method):
    """``svd-exact``: D is the divided difference f[l_i, l_j] (Daleckii and Krein, 1965)."""


@dataclass(frozen=True)
class SVDWithRule(Method):
    """A method made from a gradient rule of your own.

    Attributes:
        gradient_rule: a function ``(f, a, b) -> D`` like those in `app.spectral.gradients`.
    """

    gradient_rule: Rule

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return self.gradient_rule(f, a, b)


@dataclass(frozen=True)
class MPNCov(Method):
    """``mpn-cov``: the ordinary gradient of the eigendecomposition (Li et al., ICCV 2017)."""

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return gradients.svd(f, a, b)


@dataclass(frozen=True)
class ISqrtCov(Method):
    """``isqrt-cov``: the Newton-Schulz iteration, forward and backward (Li et al., CVPR 2018).

    Attributes:
        iterations: number of steps.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        positive_integer("iterations", self.iterations)

    def forward_function(self, f: ScalarFunction) -> ScalarFunction:
        return iteration_of(f, cubic_steps(classic(self.iterations)))


@dataclass(frozen=True)
class NSMinimax(Method):
    """``ns-minimax``: the Newton-Schulz iteration with minimax coefficients.

    Attributes:
        iterations: number of steps.
        floor: smallest eigenvalue of P / tr(P) that counts, between 0 and 1.
    """

    iterations: int = 5
    floor: float = 1e-3

    def __post_init__(self) -> None:
        minimax(self.iterations, self.floor)

    def forward_function(self, f: ScalarFunction) -> ScalarFunction:
        return iteration_of(f, cubic_steps(minimax(self.iterations, self.floor)))


@dataclass(frozen=True)
class SVDHalley(Method):
    """``svd-halley``: Halley's iteration, forward and backward (Gu et al., NeurIPS 2025; see `app.spectral.halley`).

    On ReLU features of 256 channels at 196 positions the square root has a relative error of 2e-4 after 5 steps (of
    0.42 with isqrt-cov) and of round-off after 7.

    Attributes:
        iterations: number of steps.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        positive_integer("iterations", self.iterations)

    def forward_function(self, f: ScalarFunction) -> ScalarFunction:
        return iteration_of(f, (HalleyStep(),) * self.iterations)


@dataclass(frozen=True)
class SVDTopN(Method):
    """``svd-topn``: sets all but the largest eigenvalues to zero (Song et al., ICCV 2021, eq. 11).

    Attributes:
        topn: number of eigenvalues that are kept.
    """

    topn: int = 200

    def __post_init__(self) -> None:
        positive_integer("topn", self.topn, maximum=10**6)

    def forward_function(self, f: ScalarFunction) -> ScalarFunction:
        if not f.defined_at_zero or f.value(torch.zeros(1, device="cpu")).item() != 0:
            raise ValueError("svd-topn sets eigenvalues to zero, where this function is not defined, or not zero")
        return f

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return gradients.svd(f, a, b)

    def kept(self, eigenvalues: Tensor) -> Tensor:
        dropped = max(eigenvalues.shape[-1] - self.topn, 0)
        if dropped:
            eigenvalues = eigenvalues.clone()
            eigenvalues[..., :dropped] = 0
        return eigenvalues


@dataclass(frozen=True)
class SVDTrunc(Method):
    """``svd-trunc``: truncates 1 / (l_i - l_j) (Song et al., ICCV 2021, eq. 12).

    Attributes:
        limit: the bound T; ``trunc_limit`` on the command line.
    """

    limit: float = field(default=1e10, metadata={"option": "trunc_limit"})

    def __post_init__(self) -> None:
        if not isinstance(self.limit, int | float) or not self.limit > 0:
            raise ValueError(f"trunc_limit must be positive, got {self.limit!r}")

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return gradients.truncated(f, a, b, limit=self.limit)


@dataclass(frozen=True)
class SVDPowerIteration(Method):
    """``svd-pi``: the gradient of the power iteration (Song et al., ICCV 2021, eq. 36). It diverges.

    Attributes:
        degree: degree of the geometric series; ``taylor_degree`` on the command line.
    """

    degree: int = field(default=100, metadata={"option": "taylor_degree"})

    def __post_init__(self) -> None:
        positive_integer("taylor_degree", self.degree)

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return gradients.power_iteration(f, a, b, degree=self.degree)


@dataclass(frozen=True)
class SVDNewton(Method):
    """``svd-newton``: the exact value with the gradient of the Newton-Schulz iteration (ICCV 2021, sec. 3.3).

    Attributes:
        iterations: number of steps of the backward pass.
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        positive_integer("iterations", self.iterations)

    def backward_function(self, f: ScalarFunction) -> ScalarFunction:
        return iteration_of(f, cubic_steps(classic(self.iterations)))


@dataclass(frozen=True)
class SVDTaylor(Method):
    """``svd-taylor``: approximates 1 / (l_i - l_j) by a Taylor polynomial (Song et al., ICCV 2021, eq. 16).

    Attributes:
        degree: degree of the polynomial; ``taylor_degree`` on the command line.
    """

    degree: int = field(default=100, metadata={"option": "taylor_degree"})

    def __post_init__(self) -> None:
        positive_integer("taylor_degree", self.degree)

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return gradients.taylor(f, a, b, degree=self.degree)


@dataclass(frozen=True)
class SVDPade(Method):
    """``svd-pade``: approximates 1 / (l_i - l_j) by a diagonal Padé approximant (Song et al., ICCV 2021, eq. 21).

    Attributes:
        degree: degree of the Taylor series that it matches, even; ``pade_degree`` on the command line.
    """

    degree: int = field(default=100, metadata={"option": "pade_degree"})

    def __post_init__(self) -> None:
        pade_order(self.degree)

    def rule(self, f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
        return gradients.pade(f, a, b, degree=self.degree)


METHODS: dict[str, type[Method]] = {
    "mpn-cov": MPNCov,
    "isqrt-cov": ISqrtCov,
    "svd-topn": SVDTopN,
    "svd-trunc": SVDTrunc,
    "svd-pi": SVDPowerIteration,
    "svd-newton": SVDNewton,
    "svd-taylor": SVDTaylor,
    "svd-pade": SVDPade,
    "svd-exact": SVDExact,
    "ns-minimax": NSMinimax,
    "svd-halley": SVDHalley,
}
"""The methods by name; `register_method` adds to them."""


def register_method(name: str, method: type[Method]) -> None:
    """Register a method class of your own under a name that all functions, layers and commands accept.

    Raises:
        TypeError: for a class that is not derived from `Method`.
        ValueError: for a name that is taken.
    """
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise TypeError(f"{method!r} is not a class derived from Method")
    if METHODS.get(name, method) is not method or name in ("gap", "power", "log"):
        raise ValueError(f"there is already a method {name!r}: choose another name")
    METHODS[name] = method


def method_options(method: type[Method]) -> dict[str, str]:
    """The options of a method: their names on the command line, with the names of the fields that hold them."""
    return {str(entry.metadata.get("option", entry.name)): entry.name for entry in fields(method)}


def find_method(method: str | Method, options: Mapping[str, Any] | None = None) -> Method:
    """The method with a given name and options; a method object is returned unchanged.

    Args:
        method: one of `METHODS`, or an object.
        options: options of a method that is given by name, such as ``{"pade_degree": 50}``.

    Raises:
        ValueError: for an unknown name, an option that the method does not take, or a value out of range.
    """
    options = dict(options or {})
    if isinstance(method, Method):
        if options:
            raise ValueError(f"{method} already has its options: set {', '.join(options)} in its constructor")
        return method
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    known = method_options(METHODS[method])
    for option in options:
        if option not in known:
            raise ValueError(f"{method} takes no option {option!r} (it takes {', '.join(known) or 'none'})")
    return METHODS[method](**{known[option]: value for option, value in options.items()})


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name, which suggests the nearest known one."""
    known = list(known)
    hint = ""
    for nearest in difflib.get_close_matches(str(name), known, n=1):
        hint = f"did you mean {nearest}? "
    return ValueError(f"unknown {kind} {name!r}: {hint}choose one of {', '.join(known)}")


def iteration_of(f: ScalarFunction, steps: tuple[Step, ...]) -> Iteration:
    """The coupled iteration for f.

    Raises:
        ValueError: for any function other than the square root and its inverse.
    """
    if isinstance(f, SquareRoot | InverseSquareRoot):
        return Iteration(steps, inverse=isinstance(f, InverseSquareRoot))
    raise ValueError("the iteration is defined for the square root and its inverse only")

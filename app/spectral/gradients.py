r"""The gradient rules, each of which stands in for the divided difference f[l_i, l_j] in the backward pass.

With ``P = U diag(l) U^T`` and the symmetrised, rotated upstream gradient M, the gradient of every layer is
``U (D * M) U^T`` with ``D_ij = K_ij f(l_i) + K_ji f(l_j)``, where K_ij is the layer's stand-in for 1/(l_i - l_j)
(derived in the README.md of this folder). For `svd`, `truncated`, `taylor` and `pade` K is skew-symmetric, so

    D_ij = c_ij f[l_i, l_j]     with the damping  c_ij = K_ij (l_i - l_j)  in [0, 1]:

these remedies of the papers multiply the true derivative by a number of at most one. Each rule is a function of f and
two broadcasting tensors of eigenvalues a, b, and returns D for these pairs; the diagonal, f'(l_i) for every rule, is
set by the caller. Below, t = |a - b| / max(a, b), and the eigenvalue ratio of the papers is x = 1 - t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .pade import pade_damping, taylor_damping
from .scalar_functions import ScalarFunction, relative_gap

Rule = Callable[[ScalarFunction, Tensor, Tensor], Tensor]


def exact(f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
    """D = f[a, b]: the derivative itself (Daleckii and Krein, 1965), finite where eigenvalues coincide."""
    return f.divided_difference(a, b)


def svd(f: ScalarFunction, a: Tensor, b: Tensor) -> Tensor:
    """D = (f(a) - f(b)) / (a - b): K = 1/(a - b), and K = 0 at a = b (Song et al., ICCV 2021, eq. 5).

    This is the same number as `exact`, computed as a quotient of two differences: round-off grows as the eigenvalues
    approach each other, and the limit f'(a) is missed where they coincide.
    """
    difference = a - b
    quotient = (f.value(a) - f.value(b)).div_(difference)
    return quotient.masked_fill_(difference == 0, 0)


def truncated(f: ScalarFunction, a: Tensor, b: Tensor, *, limit: float) -> Tensor:
    """Damping c = min(1, T |a - b|): K clipped to [-T, T] (Song et al., ICCV 2021, eq. 12)."""
    return f.divided_difference(a, b).mul_((a - b).abs_().mul_(limit).clamp_max_(1))


def taylor(f: ScalarFunction, a: Tensor, b: Tensor, *, degree: int) -> Tensor:
    """Damping c = 1 - x^(K+1): 1/(1 - x) cut after x^K (Song et al., ICCV 2021, eq. 16)."""
    return f.divided_difference(a, b).mul_(taylor_damping(relative_gap(a, b)[1], degree))


def pade(f: ScalarFunction, a: Tensor, b: Tensor, *, degree: int) -> Tensor:
    """Damping c = (1 - x) P(x) / Q(x): 1/(1 - x) by its Padé approximant (Song et al., ICCV 2021, eq. 21).

    The damping is within 4e-6 of 1, except where a = b, where it is 0: `app.spectral.pade` shows why.
    """
    return f.divided_difference(a, b).mul_(pade_damping(relative_gap(a, b)[1], degree))


def power_iteration(f: ScalarFunction, a: Tensor, b: Tensor, *, degree: int) -> Tensor:
    """K_ij = (1 + l_j/l_i + ... + (l_j/l_i)^K) / l_i for every ordered pair (Song et al., ICCV 2021, eq. 36).

    This includes l_j > l_i, outside the series' radius of convergence: with a > b and x = b/a,
    D = [(1 - x^(K+1)) f(a) + (x^-(K+1) - 1) f(b)] / (a - b): K_ij grows like x^-K, and overflows for small x. That is
    why the method diverges here (sec. 3.3, appendix A). A zero eigenvalue has no series; that pair gets f[a, b].
    """
    high, t = relative_gap(a, b)
    low = torch.minimum(a, b)
    log_power = (degree + 1) * torch.log1p(-t)
    D = torch.expm1(-log_power) * f.value(low) - torch.expm1(log_power) * f.value(high)
    D = torch.where(t > 0, D / (high - low), 2 * (degree + 1) * f.value(high) / high)
    return torch.where(low > 0, D, f.divided_difference(a, b))

r"""Taylor and Padé approximants of 1/(1 - x), the factor of K_ij that explodes (Song et al., ICCV 2021, eq. 14-21).

The system that defines the diagonal approximant [n/n] of the geometric series, eq. (19), is degenerate: every one of
its n rows reads q_1 + ... + q_n = -1, so in exact arithmetic every solution is 1/(1 - x) itself, pole included. A
numerical solver breaks the tie by its rounding errors, which makes coefficients, and the sign at x = 1, an accident
of the machine. We take the Tikhonov-regularised minimum-norm solution, which has a closed form:

    q_k = -(1 - delta) / n   (k = 1..n),      p_m = 1 + q_1 + ... + q_m = 1 - (1 - delta) m / n   (m = 0..n)

It satisfies every row up to ``delta``, has only positive p_m, and Q(x) >= Q(1) = delta > 0 on [0, 1]: no pole, no
sign change, the same on every machine. ``delta = 1e-20`` stands for the 20 digits in which the paper's coefficients
are computed; the value at 1 is then (n + 1)(1 + delta) / (2 delta) = 2.6e21 for [50/50] (the paper: 6.48e20).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .newton_schulz import MOST_STEPS

DELTA = 1e-20


def pade_coefficients(degree: int) -> tuple[Tensor, Tensor]:
    """Coefficients ``p_0..p_n`` and ``q_0..q_n`` (``q_0 = 1``) of the diagonal approximant matched to ``degree = 2 n``.

    Returns:
        two float64 tensors ``(n + 1,)``, lowest order first. (``1 - DELTA`` rounds to 1 in float64: evaluate the
        approximant with `pade_damping`, which is accurate up to and at x = 1, not with these.)

    Raises:
        ValueError: if the degree is odd or below 2.
    """
    n = pade_order(degree)
    m = torch.arange(n + 1, dtype=torch.float64)
    q = torch.full((n + 1,), -(1 - DELTA) / n, dtype=torch.float64)
    q[0] = 1
    return (n - m + DELTA * m) / n, q


def pade_order(degree: int) -> int:
    """The order n of the diagonal approximant [n/n] matched to a series of ``degree = 2 n``."""
    if not isinstance(degree, int) or degree < 2 or degree % 2:
        raise ValueError(f"pade_degree must be even and at least 2 (it is matched by [n/n]), got {degree!r}")
    if degree > MOST_STEPS:
        raise ValueError(f"pade_degree must be at most {MOST_STEPS}, got {degree}")
    return degree // 2


def taylor_damping(t: Tensor, degree: int) -> Tensor:
    """``t`` times the Taylor polynomial at ``x = 1 - t``:  1 - x^(K+1), for t in [0, 1] (eq. 15)."""
    return torch.log1p(-t).mul_(degree + 1).expm1_().neg_()


def pade_damping(t: Tensor, degree: int) -> Tensor:
    """``t`` times the Padé approximant P/Q at ``x = 1 - t``, for t in [0, 1] (eq. 17, coefficients above).

    With ``u = 1 - (x + ... + x^n) / n``:  ``Q = delta + (1 - delta) u``, ``tP = (1 - delta) u + delta (1 - x^(n+1))``.
    The quotient is u / (u + delta): the other terms in delta are below its round-off. It is 0 at t = 0 and, at degree
    100, within 4e-6 of 1 at the smallest t above.
    """
    n = pade_order(degree)
    power_less_one = torch.log1p(-t).mul_(n).expm1_()
    u = (1 / t).sub_(1).mul_(power_less_one).div_(n).add_(1)  # x (1 - x^n) / (n t) is the mean of x^1..x^n
    u = torch.maximum(u, t).masked_fill_(t == 0, 0)  # the mean is at most x: u >= t, even where its digits cancel
    return u.div_(u + DELTA)


def taylor_value(x: Tensor, degree: int) -> Tensor:
    """The Taylor polynomial ``1 + x + ... + x^K`` at x in [0, 1] (eq. 15); K + 1 at x = 1 (eq. 54)."""
    t = 1 - x
    return torch.where(t > 0, taylor_damping(t, degree) / t, degree + 1)


def pade_value(x: Tensor, degree: int) -> Tensor:
    """The Padé approximant at x in [0, 1] (eq. 17); its largest value, at x = 1, is ``pade_maximum``."""
    t = 1 - x
    return torch.where(t > 0, pade_damping(t, degree) / t, pade_maximum(degree))


def pade_maximum(degree: int) -> float:
    """``(p_0 + ... + p_n) / (1 + q_1 + ... + q_n)``, the value at x = 1 (eq. 53)."""
    return (pade_order(degree) + 1) * (1 + DELTA) / (2 * DELTA)

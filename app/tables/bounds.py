"""Upper bounds of the gradient factors (Song et al., ICCV 2021, tables 7 and 10, appendix F)."""

from __future__ import annotations

import mpmath
import torch

from app.console.table import Table
from app.spectral.pade import pade_maximum
from app.tables.numbers import number


def bounds_table() -> Table:
    """The bounds of K and of D, the factor of the gradient, next to the published ones."""
    eps = torch.finfo(torch.float64).eps
    pade = pade_maximum(100)
    diagonal = 0.5 * eps**-0.5
    # The sum is beyond the largest double.
    pi = mpmath.nstr(mpmath.fsum(mpmath.mpf(eps) ** -k for k in range(1, 102)), 1)
    D, equal = number(diagonal, 2), "l_i = l_j = EPS"
    newton = "1.5^10 / sqrt(tr P)"
    rows = [
        ["svd-pade", "sum p_m / (1 + sum q_n) / l_i", number(pade / eps, 3), "6.00e36", equal, D],
        ["svd-taylor", "(K + 1) / l_i", number(101 / eps, 3), "4.55e17", equal, D],
        ["svd-trunc", "T", "1e10", "1e10", "abs(l_i - l_j) <= 1 / T", D],
        ["svd-topn", "1 / l_N", number(1 / eps, 3), "4.50e15", "l_N = EPS, l_N+1 set to 0", number(2 * diagonal, 2)],
        ["svd-newton", "no K", "/", "/", "", f"{newton} = {1.5**10:.1f} / sqrt(tr P)"],
        ["mpn-cov", "1 / (l_i - l_j)", "infinite", "infinite", "l_i = l_j", D],
        [
            "svd-pi",
            "sum (l_j / l_i)^k / l_i",
            f"{pi.replace('.0e+', 'e')}: overflow",
            "",
            "l_i = EPS, l_j = 1",
            "overflow",
        ],
        ["svd-exact", "no K", "/", "", "", D],
    ]
    note = (
        f"EPS = {number(eps, 3)}, K = 100, T = 1e10, eigenvalues of EPS or more as in the paper. K_ij is the layer's "
        "stand-in for 1/(l_i - l_j), which the paper bounds. What the gradient is multiplied with is D_ij = K_ij "
        "(sqrt(l_i) - sqrt(l_j)), with D_ii = 1 / (2 sqrt(l_i)); the last column has its largest value: where K is "
        "largest, the difference is zero. The published Padé numbers do not agree with each other: the value "
        f"at x = 1, 6.48e20, divided by EPS is {number(6.48e20 / eps, 3)} and not 6.00e36. Ours at x = 1, (n + 1) "
        f"(1 + delta) / (2 delta) = {number(pade, 3)}, is set by the regularisation delta = 1e-20; as the approximant "
        "is degenerate, neither number is a property of 1/(1 - x). The paper has no bound for svd-newton; the one here "
        "is the slope of the iteration at 0."
    )
    header = ["layer", "max abs(K_ij)", "here", "published", "reached when", "max abs(D_ij)"]
    return Table("gradient_bounds", "Gradient bounds (Song et al., ICCV 2021, tables 7 and 10)", note, header, rows)

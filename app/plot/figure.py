"""The figure: where the gradient rule of each layer departs from the true derivative.

Symbols: l_i >= l_j a pair of eigenvalues, x = l_j / l_i their ratio, t = 1 - x. The trace of the covariance is 1.
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from app.plot.pairs import factors, gaps, stand_ins

LARGE, SMALL = 1e-2, 1e-12
"""The eigenvalues l_i of the two panels, relative to the trace."""

EQUAL = 2.0**-54
"""Below this t, 1 - t is 1 in float64: the two eigenvalues are the same number."""

STYLES: dict[str, dict[str, Any]] = {
    "svd-exact": {"color": "0.78", "linewidth": 8, "solid_capstyle": "butt"},
    "mpn-cov": {"color": "black", "linewidth": 1.3},
    "svd-pade": {"color": "tab:blue", "linewidth": 2, "linestyle": (0, (4, 3))},
    "svd-taylor": {"color": "tab:orange", "linewidth": 2},
    "svd-trunc": {"color": "tab:green", "linewidth": 2},
    "svd-pi": {"color": "tab:red", "linewidth": 2},
    "svd-newton": {"color": "tab:purple", "linewidth": 2, "linestyle": "dashdot"},
    "isqrt-cov": {"color": "tab:brown", "linewidth": 2, "linestyle": "dotted"},
}
"""Line styles by layer, in drawing order: curves that equal the exact rule are drawn on top of its broad band."""


def draw() -> Figure:
    """Draw two panels: the damping of the derivative at a large eigenvalue, and K and D at a small one."""
    figure = Figure(figsize=(10.5, 4.9), layout="constrained")
    damping, magnitude = figure.subplots(1, 2)
    _draw_damping(damping, gaps())
    _draw_magnitude(magnitude, gaps())
    for axes, height in ((damping, 0.04), (magnitude, 0.5)):
        axes.set(xscale="log", yscale="log", xlim=(1, 3e-18))
        axes.set_xlabel(r"$1 - \lambda_j/\lambda_i$   (far apart $\longrightarrow$ equal)")
        axes.axvspan(EQUAL, 1e-18, color="0.93", zorder=0)
        axes.text(1e-17, height, "equal in float64", transform=axes.get_xaxis_transform(), rotation=90, ha="center")
    figure.legend(*damping.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure


def _draw_damping(axes: Axes, t: Tensor) -> None:
    exact = factors("svd-exact", LARGE, t)
    for name, style in STYLES.items():
        axes.plot(t, factors(name, LARGE, t) / exact, label=name, **style)
    axes.set(ylim=(1e-6, 1e5), ylabel=r"$D_{ij}\;/\;$exact $D_{ij}$")
    axes.set_title(r"What each layer makes of the derivative, at $\lambda_i = 10^{-2}\,\mathrm{tr}\,P$", fontsize=11)
    axes.text(3e-7, 2e3, "never near the derivative,\noverflows for distant pairs", color="tab:red", va="center")
    axes.text(2e-2, 3e-5, r"$\propto 1 - \lambda_j/\lambda_i$" "\nbelow $1/(K+1)$", color="tab:orange")
    axes.text(6e-12, 5e-2, r"below $1/(T\lambda_i)$", color="tab:green")


def _draw_magnitude(axes: Axes, t: Tensor) -> None:
    for name, style in STYLES.items():
        axes.plot(t, factors(name, SMALL, t), **style)
    for name, K in stand_ins(SMALL, t).items():
        axes.plot(t, K, **{**STYLES[name], "linewidth": 1})
    axes.set(ylim=(1e-6, 1e36))
    axes.set_title(r"$K_{ij}$ and $D_{ij}$ at $\lambda_i = 10^{-12}\,\mathrm{tr}\,P$", fontsize=11)
    axes.text(0.1, 1e29, r"thin: $K_{ij}$, the stand-in for $1/(\lambda_i - \lambda_j)$")
    axes.text(0.4, 1e-5, r"thick: $D_{ij}$," "\nwhat the gradient sees")

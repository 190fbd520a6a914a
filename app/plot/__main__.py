"""Draws the gradient rules as functions of the eigenvalue ratio: ``python -m app.plot``.

Symbols: l_i >= l_j a pair of eigenvalues, x = l_j / l_i their ratio, t = 1 - x. The trace of the covariance is 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from app.console.arguments import OneLineParser
from app.spectral import METHODS, SpectralFunction, SquareRoot
from app.spectral.pade import pade_value, taylor_value

LARGE, SMALL = 1e-2, 1e-12
"""The eigenvalues l_i of the two panels, relative to the trace."""

LIMIT, DEGREE = 1e10, 100
"""T of svd-trunc and K of svd-taylor and svd-pade: the papers' values, and the defaults of the layers."""

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
"""Line styles by layer, in drawing order: what coincides with the exact rule is drawn on top of its broad band."""


def gaps(points: int = 1500) -> Tensor:
    """The horizontal axis: t from below 1 (l_j > 0) down to 1e-18, even in its logarithm, float64 ``(points,)``."""
    return torch.logspace(-0.01, -18, points, dtype=torch.float64)


def factors(name: str, eigenvalue: float, t: Tensor) -> Tensor:
    """D_ij of a layer for the pairs l_i = eigenvalue, l_j = l_i (1 - t), as its float64 code computes it."""
    function = SpectralFunction(SquareRoot(), METHODS[name]())
    a = torch.full_like(t, eigenvalue)
    return function.method.rule(function.backward_function, a, a * (1 - t))


def stand_ins(eigenvalue: float, t: Tensor) -> dict[str, Tensor]:
    """K_ij, the stand-ins for 1 / (l_i - l_j), of the layers that have one (Song et al., ICCV 2021, table 7)."""
    svd, x = 1 / (eigenvalue * t), 1 - t
    return {
        "mpn-cov": svd,
        "svd-pade": pade_value(x, DEGREE) / eigenvalue,
        "svd-taylor": taylor_value(x, DEGREE) / eigenvalue,
        "svd-trunc": svd.clamp_max(LIMIT),
    }


def draw() -> Figure:
    """Two panels: the damping of the derivative at a large eigenvalue; K and D at a small one."""
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
        axes.plot(t, K, color=STYLES[name]["color"], linewidth=1, linestyle=STYLES[name].get("linestyle", "solid"))
    axes.set(ylim=(1e-6, 1e36))
    axes.set_title(r"$K_{ij}$ and $D_{ij}$ at $\lambda_i = 10^{-12}\,\mathrm{tr}\,P$", fontsize=11)
    axes.text(0.1, 1e29, r"thin: $K_{ij}$, the stand-in for $1/(\lambda_i - \lambda_j)$")
    axes.text(0.4, 1e-5, r"thick: $D_{ij}$," "\nwhat the gradient sees")


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure into a file."""
    parser = OneLineParser(
        "python -m app.plot",
        usage="python -m app.plot [--output FILE]",
        description="Draw where the gradient rule of each layer departs from the true derivative.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gradient_rules.png"), metavar="FILE", help="a .png, .pdf or .svg file"
    )
    path: Path = parser.parse_args(arguments).output
    with matplotlib.rc_context({"font.size": 10}):
        figure = draw()
        try:
            figure.savefig(path, dpi=125)
        except (OSError, ValueError) as error:
            parser.error(f"--output: cannot write {path}: {error}")


if __name__ == "__main__":
    main()

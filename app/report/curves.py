"""Draws the curves of runs: one figure per subject, for print and for colour-blind readers.

Shapes: S logged steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator

from app.report.runs import Array, Curve, Group, Run

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, which colour-blind readers can tell apart, without its yellow."""

LINES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)),
)  # fmt: skip
"""Line styles that stay apart in black and white."""

BINS = 200
"""Places on the horizontal axis of a long run: what a narrow figure can show."""

WARM_UP = 1
STAGES = {0: "Newton-Schulz", WARM_UP: "warm-up", 2: "SVD"}
"""The values of `hybrid/stage`."""


def binned(curves: Sequence[Curve], bins: int = BINS) -> tuple[Array, Array, Array, Array]:
    """Long curves in equal bins of steps: middle of each bin, and smallest, median and largest value of all curves.

    A spike of a single step is the largest value of its bin, so none is lost. Values that are not finite do not count;
    a bin of nothing else is NaN, a gap. Four arrays ``(bins,)`` or shorter, where bins are empty.
    """
    steps, values = (np.concatenate(parts) for parts in zip(*((c.steps, c.values) for c in curves), strict=True))
    values = np.where(np.isfinite(values), values, np.nan)
    edges = np.linspace(steps.min(), steps.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, bins - 1)
    order = np.argsort(place, kind="stable")
    filled, starts = np.unique(place[order], return_index=True)
    parts = np.split(values[order], starts[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN
        low, middle, high = (np.array([f(part) for part in parts]) for f in (np.nanmin, np.nanmedian, np.nanmax))
    return (edges[filled] + edges[filled + 1]) / 2, low, middle, high


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean at the steps that all curves have."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = [curve.values[np.isin(curve.steps, steps)] for curve in curves]
    return Curve(steps, np.mean(values, axis=0))


def draw_all(groups: Sequence[Group], folder: Path) -> list[tuple[str, str]]:
    """Write every figure that the runs have data for; names of the files, and what they show."""
    written = []
    with matplotlib.rc_context({"font.size": 10, "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True}):
        for name, (caption, draw) in FIGURES.items():
            path = folder / f"{name}.png"
            path.unlink(missing_ok=True)  # of an earlier report
            figure = draw(groups)
            if figure is not None:
                figure.savefig(path, dpi=150)
                written.append((path.name, caption))
    return written


class Panel:
    """One pair of axes: the curves of all groups over the epochs, or over the steps if a run has no whole epoch."""

    def __init__(self, axes: Axes, groups: Sequence[Group], ylabel: str) -> None:
        self.axes, self.groups = axes, groups
        self.in_epochs = all(run.epochs(np.zeros(1)) is not None for group in groups for run in group.runs)
        axes.set(xlabel="epoch" if self.in_epochs else "training step", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))

    def x(self, run: Run, steps: Array) -> Array:
        epochs = run.epochs(steps) if self.in_epochs else None
        return steps if epochs is None else epochs

    def lines(self, tag: str, change: Callable[[Array], Array]) -> None:
        """Each group: the curve of its run, or thin curves of its seeds and their mean; long: range, median."""
        for index, group in enumerate(self.groups):
            runs = [run for run in group.runs if tag in run.curves]
            curves = [Curve(run.curves[tag].steps, change(run.curves[tag].values)) for run in runs]
            if not curves:
                continue
            # thinner one by one: equal curves show through
            look = {"label": _label(group, runs), "linewidth": max(2.4 - 0.3 * index, 1.0), **_style(index)}
            if max(len(curve.steps) for curve in curves) > 2 * BINS:
                steps, low, middle, high = binned(curves)
                x = self.x(runs[0], steps)
                self.axes.fill_between(x, low, high, color=look["color"], alpha=0.22, linewidth=0)
                self.axes.plot(x, high, color=look["color"], alpha=0.6, linewidth=0.5)
                self.axes.plot(x, middle, **look)
                continue
            for run, curve in zip(runs, curves, strict=True) if len(runs) > 1 else ():
                self.axes.plot(self.x(run, curve.steps), curve.values, color=look["color"], linewidth=0.6, alpha=0.45)
            curve = mean(curves)
            point = {"marker": "o", "markersize": 4} if len(curve.steps) == 1 else {}
            self.axes.plot(self.x(runs[0], curve.steps), curve.values, **look, **point)

    def bands(self, low: str, high: str) -> None:
        """The range of each group between two tags; of several seeds between the means of the two."""
        for index, group in enumerate(self.groups):
            runs = [run for run in group.runs if low in run.curves and high in run.curves]
            if not runs:
                continue
            bottom = mean([run.curves[low] for run in runs])
            top = mean([run.curves[high] for run in runs])
            x, style = self.x(runs[0], bottom.steps), {"linewidth": 1.2, **_style(index)}
            self.axes.fill_between(x, bottom.values, top.values, color=style["color"], alpha=0.2, linewidth=0)
            point = {"marker": "_", "markersize": 8} if len(x) == 1 else {}
            self.axes.plot(x, bottom.values, **style, **point)
            self.axes.plot(x, top.values, label=_label(group, runs), **style, **point)

    def stages(self) -> None:
        """A vertical line where the hybrid protocol goes to its next stage, named where all groups agree."""
        switches = [_switches(group) for group in self.groups]
        agreed = len({tuple(found) for found in switches if found}) == 1
        for index, (group, found) in enumerate(zip(self.groups, switches, strict=True)):
            colour = "0.35" if agreed else _style(index)["color"]
            places = self.x(group.runs[0], np.array([step - 1.0 for step, _ in found]))
            for (_, stage), x in zip(found, places, strict=True):
                self.axes.axvline(x, color=colour, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.5)
                self._name(STAGES.get(stage, f"stage {stage}"), float(x), colour, before=stage == WARM_UP)
            if agreed and found:
                break

    def _name(self, text: str, x: float, colour: str, before: bool) -> None:
        """Text beside a vertical line, before it where there is little room behind."""
        self.axes.annotate(
            text,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2 if before else 2, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha="right" if before else "left",
            fontsize=8,
            color=colour,
        )


def _label(group: Group, runs: Sequence[Run]) -> str:
    kind = "seeds" if len({run.seed for run in runs}) == len(runs) else "runs"
    return group.label if len(runs) == 1 else f"{group.label} ({len(runs)} {kind})"


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}


def _switches(group: Group) -> list[tuple[int, int]]:
    """First step and stage of every stage but the first, in the first run of a group."""
    curve = group.runs[0].curves.get("hybrid/stage")
    if curve is None:
        return []
    # the value is logged at the end of the epoch that it holds for
    last = np.flatnonzero(np.diff(curve.values))
    return [(int(curve.steps[k]) + 1, int(curve.values[k + 1])) for k in last]


def variants(groups: Sequence[Group], tag: str) -> list[str]:
    """What the runs have of a tag and of those of the single layers, ``tag/LAYER``, in networks with more than one."""
    tags = {found for group in groups for run in group.runs for found in run.curves}
    return sorted(found for found in tags if found == tag or found.startswith(f"{tag}/"))


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6.4 if panels == 1 else 5.25 * panels, 4.4), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, panels)))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 13.5 / (longest + 8))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)


def _errors(groups: Sequence[Group]) -> Figure | None:
    tags = [tag for name in ("train/top1", "val/top1", "val/top5") for tag in variants(groups, name)]
    if not any(tag.startswith("val/") for tag in tags):
        return None
    figure, axes = _figure(len(tags))
    for tag, area in zip(tags, axes, strict=True):
        kind = "training" if tag.startswith("train/") else "validation"
        panel = Panel(area, groups, f"{kind} top-{tag[-1]} error (%)")
        panel.lines(tag, lambda values: 100 * (1 - values))
        panel.stages()
    _legend(figure, axes[0])
    return figure


def _single(tag: str, ylabel: str) -> Callable[[Sequence[Group]], Figure | None]:
    def draw(groups: Sequence[Group]) -> Figure | None:
        tags = variants(groups, tag)
        if not tags:
            return None
        figure, areas = _figure(len(tags))
        for found, axes in zip(tags, areas, strict=True):
            panel = Panel(axes, groups, f"{ylabel}{found.removeprefix(tag).replace('/', ', ')}")
            panel.lines(found, lambda values: np.where(values > 0, values, np.nan))
            axes.set_yscale("log")
            if axes.get_ylim()[0] >= 1 and axes.get_ylim()[1] < 1e4:  # 20 instead of 2 x 10^1
                axes.yaxis.set_major_formatter(LogFormatter())
                axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            panel.stages()
        _legend(figure, areas[0])
        return figure

    return draw


def _landscape(groups: Sequence[Group]) -> Figure | None:
    if not variants(groups, "landscape/loss_max"):
        return None
    figure, (loss, gradient) = _figure(2)
    for axes, name, ylabel in (
        (loss, "loss", r"loss along the gradient, $\Delta_l$"),
        (gradient, "gradient", r"change of the gradient, $\Delta_g$"),
    ):
        panel = Panel(axes, groups, ylabel)
        panel.bands(f"landscape/{name}_min", f"landscape/{name}_max")
        panel.stages()
    _legend(figure, loss)
    return figure


FIGURES: dict[str, tuple[str, Callable[[Sequence[Group]], Figure | None]]] = {
    "errors": ("Training and validation error", _errors),
    "condition_number": (
        "Condition number of the covariance, mean of the batch",
        _single("covariance/condition_number", "condition number"),
    ),
    "effective_condition_number": (
        "Effective condition number of the covariance: over the eigenvalues that are numerically not zero",
        _single("covariance/effective_condition_number", "effective condition number"),
    ),
    "eigenvalue_ratio": (
        "Ratio of the two largest eigenvalues of the covariance",
        _single("covariance/eigenvalue_ratio", r"$\lambda_1\,/\,\lambda_2$"),
    ),
    "smoothness": (
        "Effective beta-smoothness of the loss at the input of the layer; larger is less smooth (Song et al., ICCV "
        "2021, fig. 2 and 4)",
        _single("smoothness/beta", r"effective $\beta$-smoothness"),
    ),
    "landscape": (
        "Range of the loss (A1) and of the change of its gradient (A2) along the gradient at the first convolution "
        "(Wang et al., CVPR 2020, supplement)",
        _landscape,
    ),
}
"""File name, caption and drawing function of each figure, in the order of the report."""

"""Draws the curves of groups of runs into a pair of axes, for print and for colour-blind readers.

Shapes: S logged steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from app.console.text import printable, shortened
from app.report.curves import BINS, binned, mean
from app.report.event_files import Array, Curve
from app.report.experiments import Group
from app.report.runs import Run
from app.report.stages import STAGES, WARM_UP, Switches, switches

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito, which colour-blind readers can distinguish, without its yellow."""

LINES: tuple[Any, ...] = (
    "-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 3)),
)  # fmt: skip
"""Line styles that stay apart in black and white."""


LONGEST_TEXT = 80
"""Characters of a name in a figure."""


class Panel:
    """A pair of axes with the curves of all groups over the epochs, or over the steps if a run has no whole epoch."""

    def __init__(self, axes: Axes, groups: Sequence[Group], ylabel: str) -> None:
        self.axes, self.groups = axes, groups
        self.in_epochs = all(_has_epochs(group) for group in groups)
        axes.set(xlabel="epoch" if self.in_epochs else "training step", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))

    def x(self, run: Run, steps: Array) -> Array:
        """The positions of steps ``(S,)`` on the horizontal axis."""
        if not self.in_epochs:
            return steps
        epochs = run.epochs(steps)
        assert epochs is not None  # `in_epochs` says that all runs have them
        return epochs

    def lines(self, tag: str, change: Callable[[Array], Array]) -> None:
        """Draw a tag of each group: its curve, or the thin curves of its seeds and their mean.

        Curves with more points than the figure can show are drawn as their range and median.

        Args:
            tag: of the curves.
            change: a function of their values, which is drawn.
        """
        for index, group in enumerate(self.groups):
            runs, curves = [], []
            for run in group.runs:
                if tag in run.curves:
                    curve = run.curves[tag]
                    runs.append(run)
                    curves.append(Curve(curve.steps, change(curve.values)))
            if not runs:
                continue
            # Each group is thinner than the one before, so that equal curves show through.
            look = {"label": _label(group, runs), "linewidth": max(2.4 - 0.3 * index, 1.0), **_style(index)}
            # A curve with up to two points an interval is still readable as a line.
            if max(len(curve.steps) for curve in curves) > 2 * BINS:
                self._draw_range(runs[0], curves, look)
            else:
                self._draw_seeds(runs, curves, look)

    def _draw_range(self, run: Run, curves: Sequence[Curve], look: dict[str, Any]) -> None:
        steps, low, middle, high = binned(curves)
        x = self.x(run, steps)
        self.axes.fill_between(x, low, high, color=look["color"], alpha=0.22, linewidth=0)
        self.axes.plot(x, high, color=look["color"], alpha=0.6, linewidth=0.5)
        self.axes.plot(x, middle, **look)

    def _draw_seeds(self, runs: Sequence[Run], curves: Sequence[Curve], look: dict[str, Any]) -> None:
        if len(runs) > 1:
            thin = {"color": look["color"], "linewidth": 0.6, "alpha": 0.45}
            for run, curve in zip(runs, curves, strict=True):
                self.axes.plot(self.x(run, curve.steps), curve.values, **thin)
        curve = mean(curves)
        if len(curve.steps) == 1:  # a line of one point is invisible
            look = {**look, "marker": "o", "markersize": 4}
        self.axes.plot(self.x(runs[0], curve.steps), curve.values, **look)

    def bands(self, low: str, high: str) -> None:
        """Draw the range of each group between two tags, for several seeds between the means of the two."""
        for index, group in enumerate(self.groups):
            runs = [run for run in group.runs if low in run.curves and high in run.curves]
            if not runs:
                continue
            bottom = mean([run.curves[low] for run in runs])
            top = mean([run.curves[high] for run in runs])
            x, style = self.x(runs[0], bottom.steps), {"linewidth": 1.2, **_style(index)}
            self.axes.fill_between(x, bottom.values, top.values, color=style["color"], alpha=0.2, linewidth=0)
            if len(x) == 1:  # a band of one point has no width: mark its ends
                style |= {"marker": "_", "markersize": 8}
            self.axes.plot(x, bottom.values, **style)
            self.axes.plot(x, top.values, label=_label(group, runs), **style)

    def stages(self) -> None:
        """Draw a vertical line where the hybrid protocol enters its next stage.

        The lines are grey, and drawn once, where all groups agree; else each group has its own in its colour.
        """
        entries: list[tuple[str, Run, Switches]] = []
        for index, group in enumerate(self.groups):
            found = switches(group.runs[0])  # the seeds of a group switch at the same steps
            if found:
                entries.append((_style(index)["color"], group.runs[0], found))
        if entries and all(found == entries[0][2] for _, _, found in entries):
            entries = [("0.35", *entries[0][1:])]
        for colour, run, found in entries:
            self._draw_switches(run, found, colour)

    def _draw_switches(self, run: Run, found: Switches, colour: str) -> None:
        for step, stage in found:
            # Epochs are counted after a step, so the last step of one stage is the place where the next begins.
            x = self.x(run, np.array([step - 1.0])).item()
            self.axes.axvline(x, color=colour, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0.5)
            self._name(STAGES.get(stage, f"stage {stage}"), x, colour, before=stage == WARM_UP)

    def _name(self, text: str, x: float, colour: str, before: bool) -> None:
        """Write a text on the right of a vertical line, or before it, on its left.

        The warm-up may be one epoch of many: the name of the next stage needs the room on its right.
        """
        side, offset = ("right", -2) if before else ("left", 2)
        self.axes.annotate(
            text,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(offset, -3),
            textcoords="offset points",
            rotation=90,
            va="top",
            ha=side,
            fontsize=8,
            color=colour,
        )


def _has_epochs(group: Group) -> bool:
    return all(run.epochs(np.zeros(1)) is not None for run in group.runs)


def _label(group: Group, runs: Sequence[Run]) -> str:
    label = plain(group.label)
    if len(runs) == 1:
        return label
    seeds = {run.seed for run in runs}
    kind = "seeds" if len(seeds) == len(runs) else "runs"
    return f"{label} ({len(runs)} {kind})"


def plain(text: str) -> str:
    r"""A text of the user as matplotlib draws it unchanged: a dollar sign begins no formula, and a line has an end.

    >>> plain("$HOME")
    '\\$HOME'
    """
    text = shortened(printable(text), LONGEST_TEXT)
    if text.startswith("_"):  # a legend leaves such labels out
        text = f" {text}"
    return text.replace("$", r"\$")


def _style(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": LINES[index % len(LINES)]}

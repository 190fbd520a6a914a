"""The figures of a report: one per subject."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from app.report.experiments import Group, layer_tags
from app.report.panels import Panel, plain

MOST_PANELS = 24
"""Panels of a quantity: with more a picture is too wide to be drawn. A table names all layers."""


def draw_all(groups: Sequence[Group]) -> dict[str, tuple[str, bytes]]:
    """Draw every figure that the runs have data for.

    Returns:
        by the name of a file: what it shows, and the picture as PNG.
    """
    drawn = {}
    with (
        matplotlib.rc_context({"font.size": 10, "axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of a name; it is drawn as a box
        for file, (caption, draw) in FIGURES.items():
            figure = draw(groups)
            if figure is not None:
                picture = io.BytesIO()
                figure.savefig(picture, format="png", dpi=150)
                drawn[file] = (caption, picture.getvalue())
    return drawn


def _panels(groups: Sequence[Group], tag: str) -> list[str]:
    """The tags of a quantity that have a panel each: those of the first layers, since a picture has an end."""
    return layer_tags(groups, tag)[:MOST_PANELS]


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    width = 6.4 if panels == 1 else 5.25 * panels
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, panels)))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    # About 13.5 characters fit into an inch, and the sample of a line takes up the room of eight.
    columns = max(1, min(len(labels), int(figure.get_figwidth() * 13.5 / (longest + 8))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.2)


def _errors(groups: Sequence[Group]) -> Figure | None:
    tags = []
    for name in ("train/top1", "val/top1", "val/top5"):
        tags += _panels(groups, name)
    if not any(tag.startswith("val/") for tag in tags):
        return None
    figure, axes = _figure(len(tags))
    for tag, area in zip(tags, axes, strict=True):
        # The tag ends in the k of top-k.
        kind = "training" if tag.startswith("train/") else "validation"
        panel = Panel(area, groups, f"{kind} top-{tag[-1]} error (%)")
        panel.lines(tag, lambda values: 100 * (1 - values))
        panel.stages()
    _legend(figure, axes[0])
    return figure


def _single(tag: str, ylabel: str) -> Callable[[Sequence[Group]], Figure | None]:
    """The drawing function of a quantity on a logarithmic axis, with a panel for each layer that has it."""

    def draw(groups: Sequence[Group]) -> Figure | None:
        tags = _panels(groups, tag)
        if not tags:
            return None
        figure, areas = _figure(len(tags))
        for found, axes in zip(tags, areas, strict=True):
            layer = plain(found.removeprefix(tag).replace("/", ", "))
            panel = Panel(axes, groups, f"{ylabel}{layer}")
            # A logarithmic axis has no place for zero; a NaN leaves a gap.
            panel.lines(found, lambda values: np.where(values > 0, values, np.nan))
            axes.set_yscale("log")
            # Small numbers are easier to read as 20 than as 2 x 10^1.
            if axes.get_ylim()[0] >= 1 and axes.get_ylim()[1] < 1e4:
                axes.yaxis.set_major_formatter(LogFormatter())
                axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
            panel.stages()
        _legend(figure, areas[0])
        return figure

    return draw


def _landscape(groups: Sequence[Group]) -> Figure | None:
    if not layer_tags(groups, "landscape/loss_max"):
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
    "errors.png": ("Training and validation error", _errors),
    "condition_number.png": (
        "Condition number of the covariance, mean of the batch",
        _single("covariance/condition_number", "condition number"),
    ),
    "effective_condition_number.png": (
        "Effective condition number of the covariance: over the numerically nonzero eigenvalues",
        _single("covariance/effective_condition_number", "effective condition number"),
    ),
    "eigenvalue_ratio.png": (
        "Ratio of the two largest eigenvalues of the covariance",
        _single("covariance/eigenvalue_ratio", r"$\lambda_1\,/\,\lambda_2$"),
    ),
    "smoothness.png": (
        "Effective beta-smoothness of the loss at the input of the layer; larger is less smooth (Song et al., ICCV "
        "2021, fig. 2 and 4)",
        _single("smoothness/beta", r"effective $\beta$-smoothness"),
    ),
    "landscape.png": (
        "Range of the loss (A1) and of the change of its gradient (A2) along the gradient at the first convolution "
        "(Wang et al., CVPR 2020, supplement)",
        _landscape,
    ),
}
"""File name, caption and drawing function of each figure, in the order of the report."""

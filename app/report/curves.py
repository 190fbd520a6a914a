"""Summaries of several curves: their mean, and their range in intervals of steps.

Shapes: S logged steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from app.report.event_files import Array, Curve

BINS = 200
"""Intervals on the horizontal axis of a long run: what a narrow figure can show."""


def binned(curves: Sequence[Curve], bins: int = BINS) -> tuple[Array, Array, Array, Array]:
    """Long curves in equal bins of steps.

    A spike of a single step is the largest value of its bin, so none is lost. Non-finite values do not count; a bin
    without a finite value is NaN, which leaves a gap.

    Returns:
        the middle of each bin, and the smallest, median and largest value of all curves in it: four arrays ``(bins,)``,
        or shorter where bins are empty.
    """
    steps = np.concatenate([curve.steps for curve in curves])
    values = np.concatenate([curve.values for curve in curves])
    values = np.where(np.isfinite(values), values, np.nan)
    edges = np.linspace(steps.min(), steps.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, steps, side="right") - 1, 0, bins - 1)
    order = np.argsort(place, kind="stable")
    filled, starts = np.unique(place[order], return_index=True)
    parts = np.split(values[order], starts[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all-NaN
        # quantiles 0, 1/2 and 1 are the smallest, the median and the largest value
        low, middle, high = np.transpose([np.nanquantile(part, (0, 0.5, 1)) for part in parts])
    return (edges[filled] + edges[filled + 1]) / 2, low, middle, high


def mean(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves, at the steps that all of them have."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = [curve.values[np.isin(curve.steps, steps)] for curve in curves]
    return Curve(steps, np.mean(values, axis=0))

"""The stages of the hybrid protocol in the curves of a run.

Shapes: S logged steps.
"""

from __future__ import annotations

import numpy as np

from app.report.event_files import Curve
from app.report.runs import Run

WARM_UP = 1
STAGES = {0: "Newton-Schulz", WARM_UP: "warm-up", 2: "SVD"}
"""The values of `hybrid/stage`."""

Switches = list[tuple[int, int]]
"""First step and number of a stage."""


def stage_means(run: Run, tag: str) -> dict[int, float]:
    """Mean of a curve by stage of the hybrid protocol; the stage is -1 in runs without the protocol."""
    curve, stage = run.curves[tag], _stages(run)
    if stage is None:
        return {-1: float(curve.values.mean())}
    # The stage is logged at the end of the epoch it holds for; an unfinished epoch is taken to be in the last stage.
    coming = np.minimum(np.searchsorted(stage.steps, curve.steps), len(stage.steps) - 1)
    stages = stage.values[coming]
    return {int(s): float(curve.values[stages == s].mean()) for s in np.unique(stages)}


def switches(run: Run) -> Switches:
    """The beginning of every stage except the first."""
    curve = _stages(run)
    if curve is None:
        return []
    # the value is logged at the end of the epoch that it holds for
    last = np.flatnonzero(np.diff(curve.values))
    return [(int(curve.steps[k]) + 1, int(curve.values[k + 1])) for k in last]


def _stages(run: Run) -> Curve | None:
    """The logged stages that are numbers; ``None`` if there are none."""
    curve = run.curves.get("hybrid/stage")
    if curve is None:
        return None
    finite = np.isfinite(curve.values)
    if not finite.any():
        return None
    return Curve(curve.steps[finite], curve.values[finite])

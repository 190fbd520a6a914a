"""The figures of a report: long curves keep their spikes, and the stages of the hybrid protocol are marked."""

import numpy as np
import pytest

from app.report.curves import BINS, binned
from app.report.event_files import Curve
from app.report.figures import FIGURES
from tests.app.report.event_files import groups, trained


def test_the_hybrid_stages_are_marked(tmp_path):
    _, draw = FIGURES["errors.png"]
    training, left, right = draw(groups(trained(tmp_path / "a"), trained(tmp_path / "b", 1))).axes
    for axes in (training, left, right):
        assert [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1] == [1, 2]
        assert [text.get_text() for text in axes.texts] == ["warm-up", "SVD"]
    assert left.lines[2].get_xdata().tolist() == [1, 2, 3]  # the mean of both seeds
    assert left.lines[2].get_ydata().tolist() == pytest.approx([50, 40, 45])


def test_spikes_survive_binning():
    steps, values = np.arange(100_000.0), np.ones(100_000)
    values[[777, 54_321]] = 1e15, 1e-3
    values[70_000:71_000] = np.inf
    x, low, middle, high = binned([Curve(steps, values), Curve(steps, np.ones(100_000))])
    assert len(x) == BINS
    assert (high[1], low[108]) == (1e15, 1e-3)
    assert middle[1] == middle[108] == 1
    assert np.isnan(binned([Curve(steps, values)])[3][141])  # a gap: nothing finite there
    assert np.isfinite(high).all()

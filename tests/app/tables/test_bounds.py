"""The bounds of the gradient factors."""

import pytest
import torch

from app.spectral.iterations import Iteration
from app.spectral.newton_schulz import classic, cubic_steps
from app.tables.bounds import bounds_table


def test_published_bounds_that_can_be_checked():
    rows = {row[0]: row for row in bounds_table().rows}
    for layer in ("svd-taylor", "svd-trunc", "svd-topn"):
        assert rows[layer][2] == rows[layer][3]
    assert "overflow" in rows["svd-pi"][2]


def test_slope_at_zero_bounds_the_iteration():
    x = torch.linspace(0, 1, 400, dtype=torch.float64)
    D = Iteration(cubic_steps(classic(10))).divided_difference(x[:, None], x)
    assert D.max().item() == pytest.approx(1.5**10)

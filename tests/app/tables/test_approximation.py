"""Errors of Taylor and Padé against their formulas."""

import numpy as np
import pytest

from app.spectral.pade import pade_value, taylor_value
from app.tables.approximation import RATIOS, approximation_error


@pytest.mark.parametrize(("x", "degree"), [(0.5, 50), (0.9, 100), (0.99, 200), (0.999, 300)])
def test_taylor_error_is_its_remainder(x, degree):
    assert approximation_error(taylor_value, x, degree) == pytest.approx(x ** (degree + 1) / (1 - x), rel=1e-2)


@pytest.mark.parametrize("x", RATIOS)
def test_pade_error_is_rounding(x):
    assert approximation_error(pade_value, x, 100) <= np.spacing(1 / (1 - x))

"""Approximation error of Taylor and Padé (Song et al., ICCV 2021, tables 6, 8 and 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mpmath
import torch
from torch import Tensor

from app.console.table import Table
from app.spectral.pade import pade_value, taylor_value
from app.tables.numbers import number
from app.tables.reference import DIGITS

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999)
DEGREES = (50, 100, 200, 300)

PUBLISHED_TAYLOR = {  # table 8; its row 100 is the Taylor row of table 6
    50: ("9e-19", "7e-18", "9e-16", "4e-8", "5e-2", "60", "950"),
    100: ("9e-19", "7e-18", "2e-21", "8e-16", "2e-4", "36", "904"),
    200: ("9e-19", "7e-18", "2e-21", "4e-17", "6e-9", "13", "817"),
    300: ("9e-19", "7e-18", "1e-21", "4e-17", "1e-13", "5", "740"),
}
PUBLISHED_PADE = {  # table 9; its row 100 is the Padé row of table 6
    50: ("2e-18", "3e-17", "2e-20", "6e-17", "3e-16", "1e-13", "1e-12"),
    100: ("9e-19", "5e-18", "1e-21", "5e-17", "3e-16", "8e-13", "3e-10"),
    200: ("2e-18", "1e-17", "6e-21", "6e-18", "1e-15", "1e-13", "2e-10"),
    300: ("1e-18", "8e-18", "6e-21", "5e-17", "2e-15", "1e-13", "5e-10"),
}


def approximation_tables() -> list[Table]:
    """A table of each approximant to 1/(1 - x)."""
    note = (
        "Absolute error of the approximation to 1/(1 - x), x the eigenvalue ratio, evaluated in float64. The reference "
        f"has {DIGITS} digits, at the same x (the double nearest to the decimal). Neighbouring doubles near 1/(1 - x) "
        "lie 2e-16 (x = 0.1) to 1e-13 (x = 0.999) apart, so that a result correct to the last bit shows an error of up "
        "to half of that. Published errors far below are finer than a double can be: read them as 'correct to the "
        "last bit'."
    )
    pade_note = (
        "As above. The rows are alike because the approximant of a geometric series is 1/(1 - x) itself, except for "
        "a regularisation that shows only where 1 - x comes near 1e-20: the degree plays no part."
    )
    return [
        _approximation_table("Taylor", "6 and 8", note, taylor_value, PUBLISHED_TAYLOR),
        _approximation_table("Padé", "6 and 9", pade_note, pade_value, PUBLISHED_PADE),
    ]


def _approximation_table(
    approximant: str,
    published_as: str,
    note: str,
    value: Callable[[Tensor, int], Tensor],
    published: Mapping[int, tuple[str, ...]],
) -> Table:
    rows = []
    for degree in DEGREES:
        here = [str(degree), "here"]
        for x in RATIOS:
            here.append(number(approximation_error(value, x, degree)))
        rows.append(here)
        rows.append([str(degree), "published", *published[degree]])
    title = f"Approximation error of {approximant} (Song et al., ICCV 2021, tables {published_as})"
    name = f"approximation_{approximant.lower().replace('é', 'e')}"
    return Table(name, title, note, ["degree", "", *(f"x = {x}" for x in RATIOS)], rows)


def approximation_error(value: Callable[[Tensor, int], Tensor], x: float, degree: int) -> float:
    """``|value(x) - 1/(1 - x)|`` for a float64 x in [0, 1), against extended precision."""
    approximate = value(torch.tensor(x, dtype=torch.float64), degree).item()
    with mpmath.workdps(DIGITS):
        # `mpf` takes the double itself, and not the decimal number that it stands for
        return float(abs(approximate - 1 / (1 - mpmath.mpf(x))))

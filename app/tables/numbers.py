"""Numbers as the papers print them."""

from __future__ import annotations


def number(x: float, digits: int = 1) -> str:
    """A positive number as the paper prints them: 904, 36, 2e-4, and with three digits 4.55e17."""
    if x == 0 or 1 <= x < 1e3:
        return f"{x:.0f}"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"

"""Numbers as the papers print them."""

import pytest

from app.tables.numbers import number


@pytest.mark.parametrize(
    ("x", "digits", "text"),
    [(0, 1, "0"), (904.2, 1, "904"), (36, 1, "36"), (2.1e-4, 1, "2e-4"), (0.06, 1, "6e-2"), (4.549e17, 3, "4.55e17")],
)
def test_number(x, digits, text):
    assert number(x, digits) == text

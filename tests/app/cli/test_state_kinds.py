"""Stored values of another kind than those that they would replace."""

from contextlib import nullcontext

import pytest
import torch

from app.cli.state_kinds import check_like

MATRIX = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("stored", "here", "message"),
    [
        (3, 5, None),
        (True, 5, "x is True, not a whole number"),
        ("3", 5, "x is 3, not a whole number"),
        (10**30, 5, "x is 1000000000000000000000000000000, not a whole number"),
        (3, 0.5, None),
        ("0.1", 0.5, "x is 0.1, not a number"),
        (1, False, "x is 1, not true or false"),
        (b"a", "b", "not a text"),
        ([1, 2, 3], [1], None),
        ((1, "a"), (1, 2), r"x\[1\] is a, not a whole number"),
        ({"a": 1}, [1], "not a list"),
        ({"a": "x", "new": 3}, {"a": 1, "missing": 3}, "x.a is x, not a whole number"),
        ([1], {"a": 1}, "not a dictionary"),
        ({"a": [1]}, None, None),
        ("anything", object(), None),
        (torch.ones(2, 3), MATRIX, None),
        (torch.ones(6), MATRIX, "x has the shape 6, not 2x3"),
        (torch.ones(2, 3, dtype=torch.long), MATRIX, r"x is a tensor of another kind \(strided int64\)"),
        (torch.ones(2, 3).to_sparse(), MATRIX, r"another kind \(sparse_coo float32\)"),
        (torch.ones(2, 3, device="meta"), MATRIX, "without numbers"),
        (torch.ones(2, 3, dtype=torch.float64), MATRIX, None),
        ("x", MATRIX, "x is x, not a tensor"),
        (3.0, torch.tensor(1.0), None),
        ("\x1b[2J" * 10**6, 5, r"\\x1b\[2J.*, not a whole number"),
    ],
)
def test_kinds(stored, here, message):
    with pytest.raises(ValueError, match=message) if message else nullcontext() as error:
        check_like(stored, here, "x")
    if message:
        assert len(str(error.value)) < 200


def test_settings_that_are_whole_by_chance():
    check_like({"a": [0.5, 3]}, {"a": [0]}, "x", whole=False)
    with pytest.raises(ValueError, match=r"x\.a\[0\] is y, not a number"):
        check_like({"a": ["y"]}, {"a": [0]}, "x", whole=False)

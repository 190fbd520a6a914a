"""The plot: what it draws is what the layers do, and the command."""

import pytest
import torch

from app.plot import __main__ as command
from app.plot.figure import EQUAL, LARGE, SMALL, STYLES
from app.plot.pairs import DEGREE, LIMIT, factors, gaps, stand_ins
from app.spectral import METHODS


def test_layers_are_known():
    assert set(STYLES) <= set(METHODS)


@pytest.mark.parametrize("eigenvalue", [LARGE, SMALL])
def test_factors_follow_their_formulas(eigenvalue):
    t = gaps(200)
    t = t[t > 1e-6]  # above the round-off of the test's own formulas
    exact = 1 / (eigenvalue**0.5 * (1 + (1 - t).sqrt()))
    expected = {
        "svd-exact": exact,
        "svd-pade": exact,
        "mpn-cov": exact,
        "svd-taylor": exact * (1 - (1 - t) ** (DEGREE + 1)),
        "svd-trunc": exact * (LIMIT * eigenvalue * t).clamp_max(1),
    }
    for name, D in expected.items():
        torch.testing.assert_close(factors(name, eigenvalue, t), D, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", ["svd-pade", "svd-taylor", "svd-trunc", "mpn-cov"])
def test_stand_ins_times_the_difference_are_the_factors(name):
    t = torch.tensor([0.5, 1e-2, 1e-4], dtype=torch.float64)
    difference = LARGE**0.5 * (1 - (1 - t).sqrt())
    torch.testing.assert_close(stand_ins(LARGE, t)[name] * difference, factors(name, LARGE, t))


def test_equal_eigenvalues_begin_where_the_shading_does():
    assert 1.0 - EQUAL == 1.0 > 1.0 - 1.01 * EQUAL


@pytest.mark.parametrize("ending", ["png", "pdf"])
def test_command_writes_the_figure(ending, tmp_path):
    path = tmp_path / f"figure.{ending}"
    command.main(["--output", str(path)])
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/folder/figure.png", "there is no folder"),
        ("figure.nonsense", "figure.nonsense: its format is none of"),
        ("folder.png", "folder.png is a folder"),
        ("a\0b.png", "is not the name of a file"),
    ],
)
def test_unwritable_output_ends_in_one_line(path, message, tmp_path, capsys):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as stop:
        command.main(["--output", str(tmp_path / path)])
    assert stop.value.code == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: --output: ")
    assert message in error


def test_a_name_without_an_ending_gets_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.main(["--output", "figure"])
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]

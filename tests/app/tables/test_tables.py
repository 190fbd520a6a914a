"""The tables: their numbers against formulas and the layers themselves, and the command."""

import csv

import mpmath
import numpy as np
import pytest
import torch

from app.spectral.newton_schulz import NewtonSchulz, classic
from app.spectral.pade import pade_value, taylor_value
from app.tables import __main__ as tables


@pytest.fixture
def quick(monkeypatch):
    """One photograph and a map of 2x2, so that the references take no time."""
    monkeypatch.setattr(tables, "SIDES", (2,))
    monkeypatch.setattr(tables, "PHOTOGRAPHS", tables.PHOTOGRAPHS[:1])


@pytest.mark.parametrize(("x", "degree"), [(0.5, 50), (0.9, 100), (0.99, 200), (0.999, 300)])
def test_taylor_error_is_its_remainder(x, degree):
    assert tables.approximation_error(taylor_value, x, degree) == pytest.approx(x ** (degree + 1) / (1 - x), rel=1e-2)


@pytest.mark.parametrize("x", tables.RATIOS)
def test_pade_error_is_rounding(x):
    assert tables.approximation_error(pade_value, x, 100) <= np.spacing(1 / (1 - x))


@pytest.mark.parametrize(
    ("x", "digits", "text"),
    [(0, 1, "0"), (904.2, 1, "904"), (36, 1, "36"), (2.1e-4, 1, "2e-4"), (0.06, 1, "6e-2"), (4.549e17, 3, "4.55e17")],
)
def test_number(x, digits, text):
    assert tables.number(x, digits) == text


def test_published_bounds_that_can_be_checked():
    rows = {row[0]: row for row in tables.bounds_table().rows}
    for layer in ("svd-taylor", "svd-trunc", "svd-topn"):
        assert rows[layer][2] == rows[layer][3]
    assert "overflow" in rows["svd-pi"][2]


def test_slope_at_zero_bounds_the_iteration():
    x = torch.linspace(0, 1, 400, dtype=torch.float64)
    D = NewtonSchulz(classic(10)).divided_difference(x[:, None], x)
    assert D.max().item() == pytest.approx(1.5**10)


@pytest.mark.parametrize("N", [4, 9])
@pytest.mark.parametrize("name", ["svd-exact", *tables.ITERATIONS])
def test_layers_agree_with_the_references(N, name):
    rng = np.random.default_rng(0)
    X, G = rng.standard_normal((6, N)), rng.standard_normal((6, 6))
    G = (G + G.T) / 2
    Q, gradient = tables.layer_result(torch.from_numpy(X)[None], torch.from_numpy(G)[None], name, torch.float64)
    with mpmath.workdps(tables.DIGITS):
        reference = tables.Reference(X, G)
        Q_true, gradient_true = (
            reference.exact() if name == "svd-exact" else reference.iteration(tables.ITERATIONS[name])
        )
    if name != "svd-newton":
        np.testing.assert_allclose(Q[0], Q_true, atol=1e-12)
    np.testing.assert_allclose(gradient[0], gradient_true, atol=1e-12)


def test_reference_gradient_is_a_derivative():
    rng = np.random.default_rng(0)
    X, H, G = rng.standard_normal((4, 3)), 1e-15 * rng.standard_normal((4, 3)), np.eye(4)

    def loss(features):
        s = tables.Reference(features, G).factors[0]  # tr Q, in extended precision
        return s.sum()

    with mpmath.workdps(tables.DIGITS):
        change = loss(X + H) - loss(X - H)
        step = (X + H) - (X - H)  # what the doubles really moved
        expected = (tables.Reference(X, G).exact()[1] * step).sum()
    assert float(change) == pytest.approx(expected, rel=1e-10)


def test_markdown_lines_have_the_same_cells(quick):
    for table in [*tables.approximation_tables(), tables.bounds_table(), *tables.layer_tables()]:
        lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {len(table.header) + 1}
        assert len({len(line) for line in lines}) == 1


def test_command_prints_all_and_writes_csv(quick, tmp_path, capsys):
    tables.main(["--csv", str(tmp_path / "new")])
    out = capsys.readouterr().out
    assert "nan" not in out
    files = sorted(path.stem for path in (tmp_path / "new").iterdir())
    assert files == ["approximation_pade", "approximation_taylor", "gradient_bounds", "layer_errors_4"]
    with (tmp_path / "new" / "layer_errors_4.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == list(tables.METHODS)


def test_overflow_is_said_not_raised():
    Q = torch.ones(1, 2, 2)
    assert tables._errors((Q, Q * torch.inf), [(np.ones((2, 2)), np.ones((2, 2)))]) == ["0", "overflow"]


def test_bad_folder_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        tables.main(["--csv", str(tmp_path / "file")])
    assert stop.value.code == 2
    assert "error: --csv" in capsys.readouterr().err.splitlines()[-1]

"""The bench: its baseline computes what the layer does, its figures add up, its command line holds."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from app.bench import __main__ as command
from app.bench import layers as bench
from app.bench.contestants import PRODUCTS, UNROLLED, contestants, unrolled_isqrt_cov
from app.bench.layer_costs import Figures, Size, saved_and_finite, time_layer
from app.bench.rounds import interleave, medians
from app.spectral import METHODS, covariance_sqrt

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("N", [5, 40])
def test_unrolled_baseline_is_isqrt_cov(N):
    torch.manual_seed(0)
    X = torch.randn(2, 12, N, dtype=torch.float64, requires_grad=True)
    G = torch.randn(2, 12, 12, dtype=torch.float64)
    Q, expected = unrolled_isqrt_cov(X), covariance_sqrt(X, "isqrt-cov")
    torch.testing.assert_close(Q, expected)
    torch.testing.assert_close(torch.autograd.grad(Q, X, G), torch.autograd.grad(expected, X, G))


def test_contestants_are_all_methods_and_the_other_routes():
    assert list(contestants()) == [*METHODS, PRODUCTS, UNROLLED]


def test_every_round_runs_all_in_changing_order_and_the_warm_up_is_dropped():
    order = []

    def run(name):
        order.append(name)
        return float(len(order)), 0.0

    times = interleave({name: lambda name=name: run(name) for name in "abcd"}, 3, tqdm(disable=True))
    rounds = [order[k : k + 4] for k in range(0, 16, 4)]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert len({tuple(names) for names in rounds}) > 1
    for name in "abcd":
        assert times[name] == [(4.0 * k + rounds[k].index(name) + 1, 0.0) for k in (1, 2, 3)]


def test_contestants_that_warm_up_by_themselves_are_not_run_in_vain():
    calls = []

    def run():
        calls.append(0)
        return 1.0, 2.0

    assert interleave({"a": run}, 3, tqdm(disable=True), warm_up=0) == {"a": [(1.0, 2.0)] * 3}
    assert len(calls) == 3


def test_medians_are_of_each_part():
    assert medians([[1.0, 9.0], [2.0, 7.0], [3.0, 8.0]]) == [2.0, 8.0]


def test_time_layer_sees_forward_and_backward(last):
    X = torch.ones(1, requires_grad=True)
    assert time_layer(lambda X: last(X, 0.25, 0.5), X, torch.ones(1)) == (0.25, 0.75)


def test_saved_bytes_count_each_storage_once():
    X, G = torch.randn(3, 4, requires_grad=True), torch.ones(3, 4)
    saved, finite = saved_and_finite(lambda X: (X * X).exp(), X, G)  # X twice, and the result
    assert (saved, finite) == (2 * 12 * 4, True)


def test_a_gradient_that_overflows_is_named():
    X = torch.zeros(1, 2, 3, requires_grad=True)
    assert saved_and_finite(lambda X: X.sqrt(), X, torch.ones(1, 2, 3))[1] is False
    size = Size(1, 2, 3)
    text = bench.table(size, [Figures(size, "some layer", 1, 2, 3, None, 4, False)]).markdown()
    assert "some layer: overflow" in text


def test_command_prints_a_table_a_size_and_writes_csv(tmp_path, capsys):
    flags = "--batch 2 --channels 6 --positions 4 9 --sweep 5 --repeats 1 --device cpu --dtype float32"
    bench.main([*flags.split(), "--csv", str(tmp_path / "bench.csv")])
    out = capsys.readouterr().out
    assert out.count("\n## ") == 3
    assert "threads" in out.splitlines()[0]
    with (tmp_path / "bench.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (1 + len(contestants()))
    assert [row["contestant"] for row in rows[:2]] == ["eigh of 4x4", "mpn-cov"]
    assert all(float(row["total_ms"]) >= float(row["forward_ms"]) > 0 for row in rows)
    assert float(rows[0]["eigh_ratio"]) == 1


MODULE = """
from dataclasses import dataclass
from app.spectral import Method, register_method

@dataclass(frozen=True)
class Mine(Method):
    pass

register_method("my-own", Mine)
"""


def test_a_method_of_ones_own_is_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_own_method.py").write_text(MODULE)
    flags = "--import my_own_method --batch 1 --channels 4 --positions 9 --sweep --repeats 1 --device cpu"
    try:
        command.main(flags.split())
    finally:
        METHODS.pop("my-own", None)
        sys.modules.pop("my_own_method", None)
    names = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert "my-own" in names
    assert "svd-exact" in names


def test_the_layers_are_measured_without_lightning():
    code = (
        "import sys; from app.bench.__main__ import main\n"
        "main('--batch 1 --channels 4 --positions 9 --sweep --repeats 1 --device cpu --methods svd-exact'.split())\n"
        "print('pytorch_lightning' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_selected_methods_only(capsys):
    flags = "--batch 1 --channels 4 --positions 9 --sweep --repeats 1 --device cpu --methods svd-exact"
    bench.main(flags.split())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split()[1] for line in lines] == ["layer", "eigh", "svd-exact"]


def test_sizes_by_default_and_in_full():
    default = bench.sizes(bench.parse(["--device", "cpu"]))
    full = bench.sizes(bench.parse(["--device", "cpu", "--full"]))
    assert {size.batch for size in default if size.channels == 256} == {16}
    assert {size.batch for size in full if size.channels == 256} == {16, 128}
    assert max(size.channels for size in default) < max(size.channels for size in full) == 2048
    assert {size.positions for size in default} == set(bench.POSITIONS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--batch 0", "argument --batch: '0' is not a positive integer"),
        ("--methods nonsense", "argument --methods: invalid choice: 'nonsense'"),
        ("--device nonsense", "--device: there is no 'nonsense' with float64 here"),
        ("--csv no/such/folder/file.csv", "--csv: there is no folder no/such/folder"),
        ("--csv /tmp", "--csv: /tmp is a folder: give a file"),
        ("--csv /proc/file.csv", "--csv: /proc/file.csv cannot be written: "),
        ("--csv /dev/null/file.csv", "--csv: there is no folder /dev/null"),
        ("--dtype float16", "argument --dtype: invalid choice: 'float16'"),
    ],
)
def test_wrong_flags_end_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["--device", "cpu", *flags.split()])
    assert stop.value.code == 2
    assert f"error: {message}" in capsys.readouterr().err.splitlines()[-1]

"""The table of the treatments, and ``python -m app.bench --treatments``."""

import re

import pytest
import torch

from app.bench import __main__ as bench
from app.bench.step_timer import PARTS
from app.bench.treatments import CONTESTANTS, PUBLISHED, build, table


def test_every_contestant_is_what_its_name_says():
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    for name in CONTESTANTS:
        step = build(name, "compact", images, labels)
        named = {type(treatment).__name__ for treatment in step.treatments}
        expected = {"NOG": "NearestOrthogonalGradient", "OLR": "OptimalLearningRate", "OL": "OrthogonalLoss"}
        assert named == {expected[short] for short in expected if short in name.split(" + ")}
        weight = hasattr(step.model.backbone.stage1[0], "parametrizations")
        assert weight == ("OW" in name.split(" + ") or "SN" in name.split(" + "))
        assert (step.model.pre_svd_layer is None) == (name == "vanilla")
    assert PUBLISHED.keys() <= CONTESTANTS.keys()


def test_a_timed_step_applies_the_treatments():
    torch.manual_seed(0)
    step = build("SVD + NOG", "compact", torch.randn(4, 3, 16, 16), torch.arange(4))
    assert len(step()) == len(PARTS)
    gradient = step.model.pre_svd_layer.weight.grad.flatten(1).double()
    singular = torch.linalg.svdvals(gradient)
    # to the rounding of a gradient in float32
    torch.testing.assert_close(singular, torch.ones_like(singular), rtol=0, atol=1e-5)


def test_the_table_compares_medians():
    times = {"SVD": [[0.001] * 8, [0.005] * 8, [0.001] * 8], "SVD + NOG": [[0.001] * 6 + [0.0002, 0.001]] * 3}
    rows = table(times).rows
    assert rows[0][:6] == ["SVD", "3.0", "4.0", "1.00", "12.50%", "+0.0%"]
    assert rows[1] == ["SVD + NOG", "3.0", "3.2", "0.20", "2.50%", "-10.0%", "44 / 97"]


def test_command(capsys):
    bench.main(["--treatments", "--backbone", "compact", "--batch", "2", "--repeats", "1", "--device", "cpu"])
    output = capsys.readouterr().out
    assert all(f"| {name} " in output for name in CONTESTANTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "'0' is not a positive integer"),
        (["--backbone", "nope"], "unknown backbone 'nope'"),
        (["--backbone", "alexnet"], "batch norm"),
        (["--device", "nope"], "nope"),
        (["--nope"], "unrecognized arguments: --nope"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(["--treatments", *arguments])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert error.startswith("error: ")
    assert re.search(message, error), error

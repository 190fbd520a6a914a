"""The table of whole networks, and ``python -m app.bench --networks``."""

import re

import pytest
import torch

from app.bench import __main__ as bench
from app.bench.networks import NETWORKS, POOLINGS, PUBLISHED, build, rows
from app.bench.step_timer import PARTS


def test_networks_are_the_published_ones():
    images, labels = torch.zeros(2, 3, 48, 48), torch.zeros(2, dtype=torch.long)
    for pooling in ("GAP", "GCP, D = 128"):
        network = build("resnet18", pooling, "isqrt-cov", images, labels)
        # the last printed digit
        assert network.parameters / 1e6 == pytest.approx(PUBLISHED[network.name][0], abs=0.005)
    assert {name.partition(" + ")[0] for name in PUBLISHED} <= set(NETWORKS.values())
    assert {name.partition(" + ")[2] for name in PUBLISHED} <= POOLINGS.keys()


def test_rows_are_medians_beside_the_published_figures():
    images, labels = torch.zeros(2, 3, 48, 48), torch.zeros(2, dtype=torch.long)
    networks = [build("resnet18", pooling, "isqrt-cov", images, labels) for pooling in list(POOLINGS)[:2]]
    gap = [[0.001] * len(PARTS) + [0.004]] * 2 + [[9.0] * (len(PARTS) + 1)]
    gcp = [[0.002] * len(PARTS) + [0.005]] * 3
    first, second = rows(networks, {networks[0].name: gap, networks[1].name: gcp})
    assert first[0] == "ResNet18 + GAP"
    assert first[3:] == ["4.00 / 0.77", "1.00 / 1.00", "2.00 / 0.60", "1.00 / 1.00", "25.0%", ""]
    assert second[1] == "19.60 / 19.60"
    assert second[3:] == ["8.00 / 1.21", "2.00 / 1.57", "2.50 / 0.85", "1.25 / 1.42", "25.0%", ""]


def test_command(capsys):
    arguments = ["--backbones", "mobilenet_v2", "--batch", "2", "--side", "48", "--repeats", "1", "--device", "cpu"]
    bench.main(["--networks", *arguments, "--meta_layer", "svd-exact"])
    output = capsys.readouterr().out
    assert all(f"| MobileNetV2 + {pooling} " in output for pooling in POOLINGS)
    assert "svd-exact" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "'0' is not a positive integer"),
        (["--backbones", "nope"], "invalid choice: 'nope'"),
        (["--meta_layer", "gap"], "invalid choice: 'gap'"),
        (["--device", "nope"], "nope"),
    ],
)
def test_bad_arguments_are_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(["--networks", *arguments])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line]
    assert error.startswith("error: ")
    assert re.search(message, error), error


def test_what_was_measured_is_printed_when_the_next_fails(capsys, monkeypatch):
    def built(backbone, *arguments):
        if backbone == "resnet50":
            raise RuntimeError("out of memory")
        return build(backbone, *arguments)

    monkeypatch.setattr("app.bench.networks.build", built)
    monkeypatch.setattr("app.bench.networks.POOLINGS", {"GAP": POOLINGS["GAP"]})
    flags = ["--batch", "2", "--side", "48", "--repeats", "1", "--device", "cpu"]
    with pytest.raises(SystemExit):
        bench.main(["--networks", "--backbones", "resnet18", "resnet50", *flags])
    output, error = capsys.readouterr()
    assert "| ResNet18 + GAP " in output
    assert error.splitlines()[-1].startswith("error: python -m app.bench --networks: out of memory")

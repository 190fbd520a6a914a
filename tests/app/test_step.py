import time

import pytest
import torch
from torch import nn

from app import bench
from app.classifier import Classifier
from app.step import PARTS, loader_rate, multiply_adds, time_step


def test_multiply_adds_are_the_published_ones():
    # CVPR 2020, supplement, table 1: 1.81 G and 11.69 M, 3.11 G and 19.60 M (which has a little more than we know of)
    for meta_layer, operations, parameters in (("gap", 1.81e9, 11.69e6), ("isqrt-cov", 3.11e9, 19.60e6)):
        model = Classifier(1000, "resnet18", meta_layer, dim=128)
        assert multiply_adds(model, torch.zeros(1, 3, 224, 224)) == pytest.approx(operations, rel=0.01)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.006)


def test_decompositions_are_counted_by_formula():
    class Decomposition(nn.Module):
        def forward(self, x):
            return torch.linalg.eigh(x)[0]

    assert multiply_adds(Decomposition(), torch.eye(6).expand(5, 6, 6)) == 5 * 4.5 * 6**3


def test_a_step_is_a_step_of_training():
    torch.manual_seed(0)
    model = Classifier(6, "compact", dim=8)
    before = [p.clone() for p in model.parameters()]
    start = time.perf_counter()
    seconds = time_step(model, torch.randn(4, 3, 32, 32), torch.arange(4), repeats=1)
    assert tuple(seconds) == PARTS
    assert 0 < sum(seconds.values()) < time.perf_counter() - start
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_the_two_backward_passes_are_the_whole():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    models = [Classifier(6, "compact", dim=8, optimizer=lambda params: torch.optim.SGD(params, lr=0)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    time_step(models[0], images, labels, repeats=1)
    loss = nn.functional.cross_entropy(models[1].train()(images), labels)
    loss.backward()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_loader_rate_counts_what_follows_the_first_batch():
    batches = [(torch.zeros(3, 1), torch.zeros(3))] * 4

    def slow():
        for batch in batches:
            time.sleep(0.05)
            yield batch

    rate, first = loader_rate(slow(), 2)
    assert first is batches[0]
    assert 0 < rate <= 3 / 0.05


def test_command(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--step", "--config", str(demo), "--repeats", "1", "--data.batch_size", "8"]
    bench.main([*flags, "--batches", "2"])
    output = capsys.readouterr().out
    assert all(part in output for part in PARTS)
    assert "batch 8 x 3 x 48 x 48" in output
    assert "the network is the bottleneck" in output
    bench.main([*flags, "--synthetic", "32", "--model.meta_layer", "gap"])
    output = capsys.readouterr().out
    assert "batch 8 x 3 x 32 x 32" in output
    assert "bottleneck" not in output
    assert not (tmp_path / "runs").exists()
    with pytest.raises(SystemExit):
        bench.main(["--step", "--config", "none.yaml"])
    assert "none.yaml" in capsys.readouterr().err

import re
import time

import pytest
import torch
from torch import nn

from app import bench
from app.classifier import Classifier
from app.step import PARTS, Step, loader_rate, multiply_adds, time_step


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
    seconds = time_step(Step(model, torch.randn(4, 3, 32, 32), torch.arange(4)), repeats=1)
    assert tuple(seconds) == PARTS
    assert 0 < sum(seconds.values()) < time.perf_counter() - start
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_the_two_backward_passes_are_the_whole():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    models = [Classifier(6, "compact", dim=8, optimizer=lambda params: torch.optim.SGD(params, lr=0)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    Step(models[0], images, labels)()
    loss = nn.functional.cross_entropy(models[1].train()(images), labels)
    loss.backward()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.zeros(1), index


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_rate_is_no_faster_than_the_loader(workers):
    loader = torch.utils.data.DataLoader(Slow(), batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    rate, first = loader_rate(loader, 6)  # more than an epoch
    assert first[1].tolist() == [0, 1]
    # what was prepared before the clock started may be one batch a worker
    assert 0 < rate <= max(workers, 1) / 0.02 * (6 / (6 - workers))


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
    bench.main([*flags, "--synthetic", "32", "--trainer.precision", "bf16-true", "--model.init_from", "none.ckpt"])
    assert "bf16-true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], r"none\.yaml"),
        (["--config", "DEMO", "--repeats", "0"], "repeats"),
        (["--config", "DEMO", "--synthetic", "-5"], "error: --synthetic: Not of type"),
        (["--config", "DEMO", "--batches", "none"], "batches"),
        (["--config", "DEMO", "--data.batch_size", "100000"], r"data\.batch_size 100000"),
    ],
)
def test_bad_arguments_are_one_line(demo, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        bench.main(["--step", *(str(demo) if argument == "DEMO" else argument for argument in arguments)])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error

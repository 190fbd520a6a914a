import re
import time

import pytest
import torch
from torch import nn

from app.bench import __main__ as bench
from app.bench.step import PARTS, Step, loader_rate, multiply_adds, time_step
from app.models.classifier import Classifier


def test_multiply_adds_are_the_published_ones():
    # CVPR 2020, supplement, table 1: 1.81 G and 11.69 M, 3.11 G and 19.60 M (which has a little more than we know of)
    for meta_layer, operations, parameters in (("gap", 1.81e9, 11.69e6), ("isqrt-cov", 3.11e9, 19.60e6)):
        model = Classifier(1000, "resnet18", meta_layer, dim=128)
        assert multiply_adds(model, torch.zeros(1, 3, 224, 224))[0] == pytest.approx(operations, rel=0.01)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.006)


def test_decompositions_are_counted_by_formula():
    class Decomposition(nn.Module):
        def forward(self, x):
            return torch.linalg.eigh(x @ x)[0]

    decompositions = 5 * 4.5 * 6**3
    matrices = torch.eye(6).expand(5, 6, 6)
    assert multiply_adds(Decomposition(), matrices) == (decompositions + 5 * 6**3, decompositions)


def test_the_route_of_a_layer_shows_in_its_multiply_adds():
    for route, decomposes in (("eigenbasis", True), ("products", False)):
        model = Classifier(6, "compact", dim=8, meta_options={"route": route})
        assert (multiply_adds(model, torch.zeros(1, 3, 32, 32))[1] > 0) == decomposes


def test_a_step_is_a_step_of_training():
    torch.manual_seed(0)
    model = Classifier(6, "compact", dim=8)
    before = [p.clone() for p in model.parameters()]
    start = time.perf_counter()
    seconds = time_step(Step(model, torch.randn(4, 3, 32, 32), torch.arange(4)), repeats=1)
    assert tuple(seconds) == PARTS
    assert 0 < sum(seconds.values()) < time.perf_counter() - start
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


def test_the_three_backward_passes_are_the_whole():
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    models = [Classifier(6, "compact", dim=8, optimizer=lambda params: torch.optim.SGD(params, lr=0)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    Step(models[0], images, labels)()
    loss = nn.functional.cross_entropy(models[1].train()(images), labels)
    loss.backward()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


class Clock:
    """Time passes only where a layer says so, however loaded the machine is."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Sleep(torch.autograd.Function):
    @staticmethod
    def forward(context, x, clock, forward, backward):
        context.clock, context.backward = clock, backward
        clock.now += forward
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        context.clock.now += context.backward
        return gradient, None, None, None


@pytest.mark.parametrize("module", ["backbone", "pooling", "classifier"])
@pytest.mark.parametrize("meta_layer", ["gap", "svd-exact"])
def test_time_is_booked_where_it_is_spent(module, meta_layer, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("app.bench.step.time", clock)
    model = Classifier(6, "compact", meta_layer, dim=8)
    step = Step(model, torch.randn(4, 3, 32, 32), torch.arange(4))
    getattr(model, module).register_forward_hook(lambda _, __, output: Sleep.apply(output, clock, 0.25, 0.5))
    spent = {f"{module} forward": 0.25, f"{module} backward": 0.5}
    assert time_step(step, repeats=3) == {part: spent.get(part, 0.0) for part in PARTS}


class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.zeros(1), index


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_rate_is_no_faster_than_the_loader(workers):
    loader = torch.utils.data.DataLoader(Slow(), batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    rate, batches = loader_rate(loader, 6)  # more than an epoch
    # what was prepared before the clock started may be one batch a worker
    assert 0 < rate <= max(workers, 1) / 0.02 * (6 / (6 - workers))
    assert next(batches)[1].tolist() == [6, 7]  # the last of the second or the third epoch


class Busy:
    """A step that lasts `seconds`."""

    images, labels = torch.zeros(1), None

    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self):
        time.sleep(self.seconds)
        return [self.seconds] * len(PARTS)


@pytest.mark.parametrize(
    ("workers", "seconds", "shortest", "longest"),
    [
        (0, 0.1, 0.04, 0.06),  # two images, each 0.02 s
        (2, 0.1, 0, 0.02),  # they are ready
        (2, 0.0, 0.015, 0.035),  # each of the two delivers a batch every 0.04 s
    ],
)
def test_the_loader_costs_what_a_step_waits_for_it(workers, seconds, shortest, longest):
    images = torch.utils.data.ConcatDataset([Slow()] * 20)
    loader = torch.utils.data.DataLoader(images, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    _, batches = loader_rate(loader, 1)
    parts = time_step(Busy(seconds), 6, batches)
    assert tuple(parts) == ("loader", *PARTS)
    assert shortest <= parts["loader"] <= longest


def test_command(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--step", "--config", str(demo), "--repeats", "1", "--data.batch_size", "8"]
    bench.main([*flags, "--batches", "2", "--data.num_workers", "2"])
    output = capsys.readouterr().out
    assert all(f"  {part} " in output for part in ("loader", *PARTS))
    shares = [float(share) for share in re.findall(r" ms +([0-9.]+)%", output)]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert "batch 8 x 3 x 48 x 48, medians of 2 steps" in output  # as many as loader processes
    assert "the network is the bottleneck" in output
    bench.main([*flags, "--synthetic", "32", "--model.meta_layer", "gap"])
    output = capsys.readouterr().out
    assert "batch 8 x 3 x 32 x 32" in output
    assert "loader" not in output
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

"""The timer of training steps: real fits, on a clock that the test advances."""

import copy
import signal

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from app.bench.short_fit import WARM_UP, Repeated, ShortFit
from app.bench.step_timer import LOADER, PARTS, StepTimer, check_modules
from app.models.classifier import Classifier


def network(meta_layer="svd-exact", **arguments):
    torch.manual_seed(0)
    return Classifier(6, "compact", meta_layer, dim=8, **arguments)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.arange(4)


def ordinary_fit(model, batch, **arguments):
    """A fit as Lightning runs it for anybody."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **arguments)
    trainer.fit(model, Repeated(batch))


def test_a_measured_fit_is_an_ordinary_fit(batch):
    measured = network()
    ordinary = copy.deepcopy(measured)
    ShortFit(measured, *batch)()
    ordinary_fit(ordinary, batch, max_steps=WARM_UP + 1)
    start = network().state_dict()
    for (name, p), q in zip(measured.named_parameters(), ordinary.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert torch.equal(p.grad, q.grad), name
        assert not torch.equal(p, start[name]), name


@pytest.mark.parametrize("module", ["backbone", "pooling", "classifier"])
@pytest.mark.parametrize("meta_layer", ["gap", "svd-exact"])
def test_time_is_booked_where_it_is_spent(module, meta_layer, batch, last):
    model = network(meta_layer)
    getattr(model, module).register_forward_hook(lambda _, __, output: last(output, 0.25, 0.5))
    spent = {f"{module} forward": 0.25, f"{module} backward": 0.5}
    assert ShortFit(model, *batch)() == [spent.get(part, 0.0) for part in PARTS]


def test_the_backward_pass_of_a_frozen_backbone_takes_no_time(batch, last):
    model = network()
    model.backbone.requires_grad_(False)
    model.pooling.register_forward_hook(lambda _, __, output: last(output, 0.25, 0.5))
    parts = dict(zip(PARTS, ShortFit(model, *batch)(), strict=True))
    assert (parts["pooling backward"], parts["backbone backward"]) == (0.5, 0)


class Waiting(pl.Callback):
    """Takes time in every hook of a step, and runs passes of its own through the network."""

    def __init__(self, clock):
        self.clock = clock

    def _wait(self, pl_module, seconds):
        self.clock.now += seconds
        pl_module(torch.ones(4, 3, 32, 32)).sum().backward(inputs=list(pl_module.parameters()))

    def on_train_batch_start(self, trainer, pl_module, *_):
        self._wait(pl_module, 1)

    def on_before_backward(self, trainer, pl_module, *_):
        self.clock.now += 2

    def on_after_backward(self, trainer, pl_module, *_):
        self.clock.now += 4

    def on_before_optimizer_step(self, trainer, pl_module, *_):
        self.clock.now += 8

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.clock.now += 16


@pytest.mark.parametrize(("is_treatment", "seconds"), [(True, 8), (False, 0)])
def test_only_treatments_before_the_optimizer_count(is_treatment, seconds, clock, batch):
    model, callback, timer = network("gap"), Waiting(clock), StepTimer()
    model.backbone.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 0.25))
    with timer.watching(model, [callback] if is_treatment else [], torch.device("cpu")):
        ordinary_fit(model, batch, max_steps=2, profiler=timer, callbacks=[callback])
    spent = {"backbone forward": 0.25, "treatments": seconds}
    assert timer.steps == [{part: spent.get(part, 0) for part in (LOADER, *PARTS)}] * 2


def test_the_optimizer_is_timed_without_the_closure(clock, batch):
    class Slow(torch.optim.SGD):
        def step(self, closure):
            with torch.enable_grad():
                closure()
            clock.now += 3
            super().step()

    model = network("gap", optimizer=lambda parameters: Slow(parameters, lr=0.1))
    model.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 1))  # belongs to no part
    parts = dict(zip(PARTS, ShortFit(model, *batch)(), strict=True))
    assert parts == {part: 3 if part == "optimizer" else 0 for part in PARTS}


def test_ctrl_c_ends_a_fit_as_it_ends_anything_else(batch):
    def interrupt(*_):
        raise KeyboardInterrupt

    model = network("gap")
    model.pooling.register_forward_hook(interrupt)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            ShortFit(model, *batch)()
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores the signal from then on


def test_the_hooks_go_with_the_measurement(batch):
    model = network("gap")
    ShortFit(model, *batch)()
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in model.modules()]
    assert not any(hooks)


def test_a_model_without_the_modules_is_an_error():
    model = nn.Module()
    model.backbone = nn.Identity()
    with pytest.raises(ValueError, match="Module has no pooling and no classifier"):
        check_modules(model)

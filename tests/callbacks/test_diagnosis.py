"""The cause of non-finite values, found in a batch, the weights or a layer without a trace in the model."""

import pytest
import torch

from app.layers import GlobalCovariancePooling, spectral_layers
from callbacks._diagnosis import diagnose, first_non_finite
from tests.callbacks.own_module import CLASSES, OwnModule, Treated, loader


@pytest.fixture
def batch():
    return next(iter(loader()))


def test_finite_values_have_no_cause(batch):
    assert diagnose(Treated(), batch) is None


@pytest.mark.parametrize("module", [Treated, OwnModule])
def test_the_batch(module, batch):
    batch["image"][0, 0, 0, 0] = torch.nan
    assert diagnose(module(), batch) == "the batch contains non-finite values"
    assert diagnose(module(), {"image": torch.zeros(4, 3, 8, 8), "label": batch["label"], "more": [batch]}) == (
        "the batch contains non-finite values"
    )


@pytest.mark.parametrize("module", [Treated, OwnModule])
def test_a_weight(module, batch):
    network = module()
    with torch.no_grad():
        network.head.weight[0, 0] = torch.inf
    assert diagnose(network, batch).startswith("the weight head.weight contains non-finite values")


def test_a_layer_of_the_forward_pass(batch):
    network = Treated()
    network.backbone[0].register_forward_hook(lambda module, inputs, output: output / 0)
    assert diagnose(network, batch) == "first non-finite output in backbone.0: lower the learning rate"


def test_a_spectral_layer_describes_the_reason_itself(batch):
    network = Treated()
    network.pooling = GlobalCovariancePooling(6, None, "svd-exact", spectral_dtype="float32")
    network.head = torch.nn.Linear(network.pooling.out_features, CLASSES)
    network.pooling.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 1e30,))
    cause = diagnose(network, batch)
    assert "svd-exact pooling of 6 channels: " in cause
    assert "the features are finite, but their covariance overflows" in cause


def test_without_a_loss_no_layer_is_named(batch):
    network = OwnModule()
    network.backbone[0].register_forward_hook(lambda module, inputs, output: output / 0)
    assert diagnose(network, batch) is None


def test_it_leaves_no_trace(batch):
    network, seen = Treated(), []
    for layer in spectral_layers(network).values():
        layer.observe_spectrum(seen.append)
    network.backbone.append(torch.nn.Dropout())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    numbers, attributes, hooks = torch.get_rng_state(), set(vars(network.pooling)), len(network.head._forward_hooks)
    assert diagnose(network, batch) is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert set(vars(network.pooling)) == attributes
    assert len(network.head._forward_hooks) == hooks
    assert network.pooling.non_finite_handler is None
    assert network.pooling.counts.calls == 0
    assert seen == []


def test_the_first_of_several_tensors():
    finite, bad = torch.zeros(3), torch.tensor([0.0, torch.nan])
    tensors = [("whole numbers", torch.arange(3)), ("finite", finite), ("bad", bad), ("worse", bad)]
    assert first_non_finite(tensors) == "bad"
    assert first_non_finite(tensors[:2]) is None
    assert first_non_finite([("largest", torch.full((9,), 3e38))]) is None

import pytest
import torch
from torch import nn

from app.models.features import as_feature_map, feature_channels, last_convolution


class Normed(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout())


def test_channels_are_an_attribute_or_those_of_a_small_image():
    network = Normed()
    assert feature_channels(network) == 4
    network.num_features = 7
    assert feature_channels(network) == 7
    network.out_channels = 9
    assert feature_channels(network) == 9


def test_the_small_image_leaves_no_trace():
    network = Normed()
    network[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    generator = torch.get_rng_state()
    feature_channels(network)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Flatten(), r"backbone Flatten must return a feature map .* returns \(1, 12288\)"),
        (nn.Conv2d(5, 2, 3), None),  # its attribute out_channels answers
        (nn.Sequential(nn.Conv2d(5, 2, 3)), "channels of backbone Sequential is unknown: .*64x64 pixels .*5 channels"),
    ],
)
def test_backbones_that_are_none(network, message):
    if message is None:
        assert feature_channels(network) == 2
        return
    with pytest.raises(ValueError, match=message):
        feature_channels(network)


def test_last_convolution():
    assert last_convolution(nn.ReLU()) is None
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()))
    assert last_convolution(network) is network[1][0]


class Tokens(nn.Sequential):
    """Patches of 8 x 8 pixels as tokens, without an attribute of their width."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 8, stride=8), nn.Flatten(2))

    def forward(self, images):
        return super().forward(images).mT


def test_tokens_are_a_map_of_one_column():
    network = Tokens()
    assert feature_channels(network) == 6
    tokens = network(torch.randn(2, 3, 32, 32))
    assert tokens.shape == (2, 16, 6)
    assert torch.equal(as_feature_map(network, tokens)[:, :, :, 0], tokens.mT)


def test_features_that_are_no_tensor():
    with pytest.raises(ValueError, match=r"backbone ReLU must return .* and returns a dict"):
        as_feature_map(nn.ReLU(), {"out": torch.zeros(1)})

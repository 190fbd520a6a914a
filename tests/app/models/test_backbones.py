import pytest
import torch
from torchvision import models

from app.models.backbones import BACKBONES, build_backbone


@pytest.mark.parametrize(
    ("name", "downsampling", "channels", "side"),
    [
        ("alexnet", "removed", 256, 13),
        ("alexnet", "kept", 256, 6),
        ("alexnet_bn", "removed", 256, 13),
        ("resnet18", "removed", 512, 14),
        ("resnet18", "kept", 512, 7),
        ("resnet18", "max-pool", 512, 7),
        ("resnet50", "removed", 2048, 14),
        ("resnet50", "max-pool", 2048, 7),
        ("mobilenet_v2", "removed", 1280, 14),
        ("mobilenet_v2", "kept", 1280, 7),
        ("mobilenet_v2", "max-pool", 1280, 7),
    ],
)
def test_positions_of_224_pixels(name, downsampling, channels, side):
    backbone = build_backbone(name, downsampling).eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 224, 224)).shape == (1, channels, side, side)
    assert backbone.out_channels == channels


@pytest.mark.parametrize("downsampling", ["removed", "kept", "max-pool"])
def test_compact_on_48_pixels(downsampling):
    side = 12 if downsampling == "removed" else 6
    assert build_backbone("compact", downsampling)(torch.zeros(2, 3, 48, 48)).shape == (2, 64, side, side)


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in ("compact", "alexnet_bn")])
def test_kept_backbone_is_torchvisions_network(name):
    network = models.get_model(name, weights=None).eval()
    backbone = build_backbone(name, "kept").eval()
    missing, unexpected = backbone.load_state_dict(network.state_dict(), strict=False)
    assert not missing
    assert all(key.startswith(("fc.", "classifier.")) for key in unexpected)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        if name.startswith("resnet"):
            pooled = backbone(x).mean((2, 3))
            torch.testing.assert_close(network.fc(pooled), network(x))
        else:
            torch.testing.assert_close(backbone(x), network.features(x))


def test_removing_the_stride_changes_no_parameter():
    state = models.resnet18(weights=None).state_dict()
    for downsampling in ("removed", "kept", "max-pool"):
        assert not build_backbone("resnet18", downsampling).load_state_dict(state, strict=False).missing_keys


def test_max_pool_stands_before_the_last_stage():
    backbone = build_backbone("resnet18", "max-pool").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            x = getattr(backbone, name)(x)
        expected = backbone.layer4(torch.nn.functional.max_pool2d(x, 3, 2, 1))
        torch.testing.assert_close(backbone.layer4(backbone.pool4(x)), expected)
    assert list(dict(backbone.named_children()))[-2:] == ["pool4", "layer4"]


@pytest.mark.parametrize(
    ("name", "millions"),
    # as published by torchvision, without the classifiers
    [("alexnet", 2.47), ("resnet18", 11.18), ("resnet50", 23.51), ("mobilenet_v2", 2.22), ("compact", 0.08)],
)
def test_number_of_parameters(name, millions):
    numbers = {sum(p.numel() for p in build_backbone(name, choice).parameters()) for choice in ("removed", "kept")}
    assert len(numbers) == 1
    assert numbers.pop() / 1e6 == pytest.approx(millions, abs=0.005)


def test_stem_for_32_pixels():
    backbone = build_backbone("resnet50", "kept", stem="cifar").eval()
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, 2048, 4, 4)
    assert backbone.conv1.kernel_size == (3, 3)


def test_weights_from_a_local_file_and_what_was_not_loaded(tmp_path, caplog):
    network = models.resnet18(weights=None)
    path = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    backbone = build_backbone("resnet18", weights=str(path))
    assert torch.equal(backbone.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    with pytest.warns(UserWarning, match=r"resnet18.pth: of another shape, not loaded: backbone.conv1.weight"):
        build_backbone("resnet18", stem="cifar", weights=str(path))


def test_nothing_loaded_is_a_warning(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.warns(UserWarning, match="nothing of .*other.pth fits this backbone .*it starts from random weights"):
        build_backbone("resnet18", weights=str(path))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "vgg16"}, ValueError, "unknown backbone 'vgg16': choose one of alexnet, "),
        ({"name": "ResNet5O"}, ValueError, r"unknown backbone 'ResNet5O': did you mean resnet50\? choose one of"),
        ({"name": "alexnet", "stem": "cifar"}, ValueError, "no stem for 32x32"),
        ({"name": "alexnet", "downsampling": "max-pool"}, ValueError, "removed or kept"),
        ({"name": "compact", "weights": "IMAGENET1K_V1"}, ValueError, "no pretrained weights"),
        (
            {"name": "resnet18", "weights": "IMAGENET22K"},
            FileNotFoundError,
            "is not a file, and resnet18 has only",
        ),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        build_backbone(**arguments)

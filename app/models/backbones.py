"""Convolutional backbones: torchvision's networks without their pooling and classifier, modified as in the papers.

Parameter names are torchvision's, so its weights load as they are. Shapes: B batch, C channels, H x W positions.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision import models

from app.console.suggestions import did_you_mean
from app.models.pretrained import initialise
from app.models.torch_files import read_state_dict

Downsampling = Literal["removed", "kept", "max-pool"]
Stem = Literal["imagenet", "cifar"]

BACKBONES = (
    "alexnet",
    "alexnet_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "mobilenet_v2",
    "compact",
)
"""Names of the backbones."""


class Backbone(nn.Sequential):
    """A feature extractor ``(B, 3, H, W) -> (B, out_channels, h, w)`` whose children have torchvision's names."""

    def __init__(self, layers: dict[str, nn.Module], out_channels: int) -> None:
        super().__init__(OrderedDict(layers))
        self.out_channels = out_channels


def build_backbone(
    name: str,
    downsampling: Downsampling = "removed",
    stem: Stem = "imagenet",
    weights: str | None = None,
) -> Backbone:
    """Build a backbone.

    Args:
        name: one of `BACKBONES`.
        downsampling: down-sampling of the last stage: ``removed`` (the default of GCP networks), ``kept`` (the network
            as published; GCP_D) or ``max-pool`` (a max-pooling with stride 2 before the last stage, which keeps its own
            stride removed; GCP_M): Wang et al., CVPR 2020, supplement D and E. For AlexNet it is the last max-pooling
            that is removed (leaving 13 x 13 positions for 224 x 224 images) or kept.
        stem: ``imagenet``, or ``cifar`` for 32 x 32 images: a 3 x 3 convolution of stride 1 and no max-pooling
            (ResNets; Song et al., ECCV 2022, sec. 4.1).
        weights: ``None``, the path of a local file of torchvision weights, or torchvision's name of the weights,
            such as ``IMAGENET1K_V1`` (downloaded, or found in torch's cache).

    Raises:
        ValueError: for an unknown name, or an option that the network does not have.
        FileNotFoundError: for weights that are neither a file nor a name that torchvision knows.
    """
    if name not in BACKBONES:
        raise ValueError(_unknown(name))
    if stem == "cifar" and not name.startswith("resnet"):
        raise ValueError(f"backbone {name} has no stem for 32x32 images: only the ResNets have one")
    if name == "compact" and weights is not None:
        raise ValueError("backbone compact has no pretrained weights: leave out weights")
    if name == "alexnet_bn" and weights is not None:
        raise ValueError("torchvision has no weights of alexnet_bn: start from a checkpoint with init_from")
    if name == "compact":
        backbone = _compact(downsampling)
    elif name.startswith("alexnet"):
        backbone = _alexnet(downsampling, batch_norm=name == "alexnet_bn")
    elif name == "mobilenet_v2":
        backbone = _mobilenet_v2(downsampling)
    else:
        backbone = _resnet(name, downsampling, stem)
    if weights is not None:
        load_torchvision_weights(backbone, name, weights)
    return backbone


def _unknown(name: str) -> str:
    choice = f"choose one of {', '.join(BACKBONES)}, or give the class_path of a module of your own"
    return " ".join(f"unknown backbone {name!r}: {did_you_mean(name, BACKBONES)} {choice}".split())


def load_torchvision_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Load torchvision's weights, and print what was not loaded; warn if nothing was.

    Args:
        backbone: the network to load into.
        name: torchvision's name of the network.
        weights: a local file, or torchvision's name of the weights.

    Raises:
        ValueError: for a file that cannot be read.
        FileNotFoundError: for weights that are neither a file nor a name that torchvision knows.
    """
    state = {}
    for key, tensor in _torchvision_state(name, weights).items():
        # The classifier is not part of the backbone, so its weights are not reported as unused.
        if not key.startswith(("fc.", "classifier.")):
            state[f"backbone.{key}"] = tensor
    initialise(nn.ModuleDict({"backbone": backbone}), state, weights, required=False)


def _torchvision_state(name: str, weights: str) -> dict[str, Tensor]:
    if Path(weights).is_file():
        try:
            return read_state_dict(weights)
        except ValueError as error:
            raise ValueError(f"model.weights: {error}: give another file, or null for random weights") from error
    known = models.get_model_weights(name).__members__
    if weights not in known:
        raise FileNotFoundError(f"weights {weights!r} is not a file, and {name} has only {', '.join(known)}")
    try:
        return dict(known[weights].get_state_dict(progress=False, check_hash=True))
    except OSError as error:
        raise FileNotFoundError(f"weights {weights} could not be downloaded ({error}): give a local file") from error


def _resnet(name: str, downsampling: Downsampling, stem: Stem) -> Backbone:
    network = models.get_model(name, weights=None)
    if downsampling != "kept":
        _remove_stride(network.layer4)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    layers = dict(network.named_children())
    del layers["avgpool"], layers["fc"]
    if stem == "cifar":
        del layers["maxpool"]
    if downsampling == "max-pool":
        last = layers.pop("layer4")
        layers.update(pool4=nn.MaxPool2d(kernel_size=3, stride=2, padding=1), layer4=last)
    return Backbone(layers, network.fc.in_features)


def _remove_stride(stage: nn.Module) -> None:
    # torchvision's replace_stride_with_dilation would dilate the kernels instead, which is another network.
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)


def _alexnet(downsampling: Downsampling, batch_norm: bool) -> Backbone:
    """AlexNet; with batch norm after every convolution it is the network of the papers' reference implementation."""
    if downsampling == "max-pool":
        raise ValueError("backbone alexnet: its last down-sampling is a max-pooling, choose removed or kept")
    features = models.alexnet(weights=None).features
    if downsampling == "removed":
        features = features[:-1]  # the last max-pooling
    layers: list[nn.Module] = []
    for module in features:
        layers.append(module)
        if batch_norm and isinstance(module, nn.Conv2d):
            layers.append(nn.BatchNorm2d(module.out_channels))
    return Backbone({"features": nn.Sequential(*layers)}, 256)


LAST_STRIDE = 14
"""Number of MobileNetV2's last block with a stride, the first of the stage with 160 channels."""


def _mobilenet_v2(downsampling: Downsampling) -> Backbone:
    network = models.mobilenet_v2(weights=None)
    if downsampling != "kept":
        _remove_stride(network.features[LAST_STRIDE])
    layers: dict[str, nn.Module] = {"features": network.features}
    if downsampling == "max-pool":
        # It is inserted in the forward pass, so that the blocks keep the names that weights are stored under.
        layers["features"] = _PooledBefore(network.features, LAST_STRIDE)
    return Backbone(layers, network.last_channel)


class _PooledBefore(nn.Sequential):
    """A sequence of blocks with a max-pooling of stride 2 before one of them; the names of the blocks stay."""

    def __init__(self, blocks: nn.Sequential, before: int) -> None:
        super().__init__(*blocks)
        self.before = before

    def forward(self, input: Tensor) -> Tensor:
        for index, block in enumerate(self):
            if index == self.before:
                input = nn.functional.max_pool2d(input, kernel_size=3, stride=2, padding=1)
            input = block(input)
        return input


def _compact(downsampling: Downsampling) -> Backbone:
    """Four 3x3 convolutions for small images, 80,000 parameters: 48 x 48 images give 12 x 12 positions."""
    strides = {"removed": (2, 2, 1, 1), "kept": (2, 2, 1, 2), "max-pool": (2, 2, 1, 1)}[downsampling]
    widths = (3, 32, 48, 64, 64)
    layers: dict[str, nn.Module] = {}
    for k in range(4):
        if k == 3 and downsampling == "max-pool":
            layers["pool4"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        layers[f"stage{k + 1}"] = nn.Sequential(
            nn.Conv2d(widths[k], widths[k + 1], kernel_size=3, stride=strides[k], padding=1, bias=False),
            nn.BatchNorm2d(widths[k + 1]),
            nn.ReLU(inplace=True),
        )
    return Backbone(layers, widths[-1])

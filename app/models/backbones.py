"""Convolutional backbones: torchvision's networks without their pooling and classifier, changed as the papers say.

Parameter names are torchvision's, so its weights load as they are. Shapes: B batch, C channels, H x W positions.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torchvision import models

from app.layers import DecorrelatedBatchNorm2d
from app.models.pretrained import load_fitting, read_state_dict, tell

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
    """A feature extractor ``(B, 3, H, W) -> (B, out_channels, h, w)``; `out_channels` is its one promise."""

    def __init__(self, layers: dict[str, nn.Module], out_channels: int) -> None:
        super().__init__(OrderedDict(layers))
        self.out_channels = out_channels

    @property
    def last_convolution(self) -> nn.Conv2d:
        """The convolution that the features come out of, but for batch norm, addition and activation."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)][-1]

    @property
    def decorrelated_convolution(self) -> nn.Conv2d | None:
        """The convolution before a decorrelated batch norm, ``None`` in a network without one."""
        convolution = None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                convolution = module
            if isinstance(module, DecorrelatedBatchNorm2d):
                return convolution
        return None

    def decorrelate(self, method: str, options: dict[str, Any] | None = None) -> None:
        """Put a decorrelated batch norm in place of the first batch norm (Song et al., ECCV 2022, fig. 6).

        Args:
            method: of the inverse square root, one of `app.spectral.METHODS`.
            options: other arguments of `DecorrelatedBatchNorm2d`, and options of the method, such as ``iterations``.

        Raises:
            ValueError: for a network without batch norm, or a wrong method or option.
        """
        name = next((name for name, module in self.named_modules() if isinstance(module, nn.BatchNorm2d)), None)
        if name is None:
            raise ValueError("decorrelation replaces the first batch norm, and this backbone has none")
        arguments = set(inspect.signature(DecorrelatedBatchNorm2d).parameters) - {"num_features", "method", "options"}
        own = {key: value for key, value in (options or {}).items() if key in arguments}
        rest = {key: value for key, value in (options or {}).items() if key not in arguments | {"options"}}
        rest |= (options or {}).get("options") or {}
        channels = self.get_submodule(name).num_features
        try:
            layer = DecorrelatedBatchNorm2d(channels, method=method, options=rest, **own)
        except (TypeError, ValueError) as error:
            choice = f"the layer's own options are {', '.join(sorted(arguments))}"
            raise ValueError(f"model.decorrelation {method}, decorrelation_options: {error} ({choice})") from error
        self.set_submodule(name, layer)


def build_backbone(
    name: str,
    downsampling: Downsampling = "removed",
    stem: Stem = "imagenet",
    weights: str | None = None,
) -> Backbone:
    """Build a backbone.

    Args:
        name: one of `BACKBONES`.
        downsampling: of the last stage: ``removed`` (the default of GCP networks), ``kept`` (the network as published;
            GCP_D) or ``max-pool`` (a max-pooling with stride 2 before the last stage, which keeps its own stride
            removed; GCP_M): Wang et al., CVPR 2020, supplement D and E. For AlexNet it is the last max-pooling that
            is removed, 13 x 13 positions for 224 x 224 images, or kept.
        stem: ``imagenet``, or ``cifar`` for 32 x 32 images: a 3 x 3 convolution of stride 1 and no max-pooling
            (ResNets; Song et al., ECCV 2022, sec. 4.1).
        weights: ``None``, the path of a local file of torchvision weights, or torchvision's name of the weights,
            such as ``IMAGENET1K_V1`` (downloaded, or found in torch's cache).

    Raises:
        ValueError: for an unknown name, or an option that the network does not have.
        FileNotFoundError: for weights that are neither a file nor a name that torchvision knows.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    if stem == "cifar" and not name.startswith("resnet"):
        raise ValueError(f"backbone {name} has no stem for 32x32 images: only the ResNets have")
    if name == "compact":
        if weights is not None:
            raise ValueError("backbone compact has no pretrained weights: leave out weights")
        return _compact(downsampling)
    if name in ("alexnet", "alexnet_bn"):
        if weights is not None and name == "alexnet_bn":
            raise ValueError("torchvision has no weights of alexnet_bn: start from a checkpoint with init_from")
        backbone = _alexnet(downsampling, batch_norm=name == "alexnet_bn")
    elif name == "mobilenet_v2":
        backbone = _mobilenet_v2(downsampling)
    else:
        backbone = _resnet(name, downsampling, stem)
    if weights is not None:
        load_torchvision_weights(backbone, name, weights)
    return backbone


def load_torchvision_weights(backbone: Backbone, name: str, weights: str) -> None:
    """Load torchvision's weights, and say what was not loaded; warn loudly when nothing was.

    Args:
        backbone: the network to load into.
        name: torchvision's name of the network.
        weights: a local file, or torchvision's name of the weights.
    """
    if Path(weights).is_file():
        try:
            state = read_state_dict(weights)
        except ValueError as error:
            raise ValueError(f"model.weights: {error}: give another file, or null for random weights") from error
    else:
        try:
            known = models.get_model_weights(name)
            state = known[weights].get_state_dict(progress=False, check_hash=True)
        except KeyError:
            names = ", ".join(known.__members__)
            raise FileNotFoundError(f"weights {weights!r} are no file, and {name} has only {names}") from None
        except OSError as error:
            raise FileNotFoundError(
                f"weights {weights} could not be downloaded ({error}): give a local file"
            ) from error
    # those of a classifier that is not here: its name differs from one network to the other
    state = {f"backbone.{key}": value for key, value in state.items() if not key.startswith(("fc.", "classifier."))}
    result = load_fitting(nn.ModuleDict({"backbone": backbone}), state)
    if not result.loaded:
        rank_zero_warn(f"NOTHING was loaded from {weights} into {name}: the network starts from random weights")
    else:
        tell(result, weights)


def _resnet(name: str, downsampling: Downsampling, stem: Stem) -> Backbone:
    network = models.get_model(name, weights=None)
    if downsampling != "kept":
        _remove_stride(network.layer4)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    layers = {key: module for key, module in network.named_children() if key not in ("avgpool", "fc")}
    if stem == "cifar":
        del layers["maxpool"]
    if downsampling == "max-pool":
        last = layers.pop("layer4")
        layers.update(pool4=nn.MaxPool2d(kernel_size=3, stride=2, padding=1), layer4=last)
    return Backbone(layers, network.fc.in_features)


def _remove_stride(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)


def _alexnet(downsampling: Downsampling, batch_norm: bool) -> Backbone:
    """AlexNet; with batch norm after every convolution it is the network of the papers' reference implementation."""
    if downsampling == "max-pool":
        raise ValueError("backbone alexnet: its last down-sampling is a max-pooling, choose removed or kept")
    features = models.alexnet(weights=None).features
    layers = list(features if downsampling == "kept" else features[:-1])
    if batch_norm:
        normed = [[m, nn.BatchNorm2d(m.out_channels)] if isinstance(m, nn.Conv2d) else [m] for m in layers]
        layers = [module for group in normed for module in group]
    return Backbone({"features": nn.Sequential(*layers)}, 256)


def _mobilenet_v2(downsampling: Downsampling) -> Backbone:
    network = models.mobilenet_v2(weights=None)
    if downsampling != "kept":
        _remove_stride(network.features[14])  # the first block of the stage with 160 channels, the last that strides
    layers: dict[str, nn.Module] = {"features": network.features}
    if downsampling == "max-pool":
        # inserted in the forward pass, so that the blocks keep the names that weights are stored under
        layers["features"] = _PooledBefore(network.features, 14)
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

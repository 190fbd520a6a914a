"""The interface of a backbone to the layers after it: the number of channels, and the last convolution.

A backbone is any `torch.nn.Module` that turns images ``(B, 3, H, W)`` into a feature map ``(B, C, h, w)`` or tokens
``(B, N, C)``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIDE = 64
"""Side in pixels of the image that the number of channels is found with: enough to down-sample by 32, and cheap."""


def feature_channels(backbone: nn.Module) -> int:
    """The number of channels C of the feature map.

    It is the attribute ``out_channels``, or ``num_features`` as timm's networks call it. A network that has neither
    is applied to a small image.

    Raises:
        ValueError: if that fails, or gives no feature map.
    """
    for attribute in ("out_channels", "num_features"):
        channels = getattr(backbone, attribute, None)
        if isinstance(channels, int):
            return channels
    try:
        features = _features_of_small_image(backbone)
    except Exception as error:  # a user's network may raise anything
        raise ValueError(
            f"the number of channels of backbone {type(backbone).__name__} is unknown: it has no attribute "
            f"out_channels, and its forward pass fails for an image of {SIDE}x{SIDE} pixels ({error})"
        ) from error
    return as_feature_map(backbone, features).shape[1]


def as_feature_map(backbone: nn.Module, features: Tensor) -> Tensor:
    """Return the features as a map ``(B, C, h, w)``; tokens ``(B, N, C)`` become ``(B, C, N, 1)``.

    Raises:
        ValueError: if they are neither, for example because the backbone includes its pooling and classifier.
    """
    if isinstance(features, Tensor) and features.ndim == 4:
        return features
    if isinstance(features, Tensor) and features.ndim == 3:
        return features.mT.unsqueeze(-1)
    returned = tuple(features.shape) if isinstance(features, Tensor) else f"a {type(features).__name__}"
    raise ValueError(
        f"backbone {type(backbone).__name__} must return a feature map (B, C, h, w) or tokens (B, N, C), without "
        f"pooling and classifier, and returns {returned}"
    )


def last_convolution(backbone: nn.Module) -> nn.Conv2d | None:
    """The convolution that produces the features, up to batch norm, addition and activation.

    It is the last one in the order of the modules, and ``None`` for a network without convolutions.
    """
    convolution = None
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            convolution = module
    return convolution


@torch.no_grad()
def _features_of_small_image(backbone: nn.Module) -> Tensor:
    # In evaluation mode the image leaves no trace in the statistics of batch norm.
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        parameter = next(backbone.parameters(), torch.zeros(()))
        return backbone(torch.zeros(1, 3, SIDE, SIDE, device=parameter.device, dtype=parameter.dtype))
    finally:
        for module, training in modes:
            module.training = training

"""Global average pooling, the first-order baseline."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class GlobalAveragePooling(nn.Module):
    """Pools ``(B, C, H, W)`` to the mean of each channel over the positions, ``(B, C)``.

    Args:
        in_channels: channels C of the feature map.

    Attributes:
        out_features: length of the pooled vector, C.
        meta_layer: ``gap``, the name of this layer among the meta-layers.
    """

    meta_layer = "gap"

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.out_features = in_channels
        self.meta_options: dict[str, Any] = {}

    @property
    def pre_svd_layer(self) -> None:
        """``None``: no layer feeds a covariance here."""
        return None

    def use_meta_layer(self, meta_layer: Any, meta_options: dict[str, Any] | None = None) -> None:
        """Raise an error for any other meta-layer, because its output has another shape.

        Raises:
            ValueError: for every meta-layer but this one.
        """
        if meta_layer != "gap" or meta_options:
            raise ValueError(f"{self.extra_repr()} cannot become {meta_layer}: its output has another shape")

    def forward(self, features: Tensor) -> Tensor:
        return features.mean((-2, -1))

    def extra_repr(self) -> str:
        return f"gap pooling of {self.out_features} channels"

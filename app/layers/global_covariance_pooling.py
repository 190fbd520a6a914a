"""Global covariance pooling: from a feature map to the normalised covariance of its channels.

Shapes: B batch, C channels in, d channels after the reduction, H x W = N positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from app.layers.spectral_layer import SpectralLayer
from app.spectral import METHODS, covariance_spectrum, covariance_sqrt
from app.spectral.functions import parse_options
from app.spectral.scalar_functions import SquareRoot

META_LAYERS = ("gap", *METHODS)
"""Names of the meta-layers: global average pooling, and every method of `app.spectral`."""


class GlobalCovariancePooling(SpectralLayer):
    """Pools ``(B, C, H, W)`` to the upper triangle of the square root of the channel covariance, ``(B, d(d+1)/2)``.

    1x1 convolution to ``dim`` channels with batch norm and ReLU, covariance over the H x W positions, matrix square
    root, upper triangle (Li et al., ICCV 2017 and CVPR 2018; Song et al., ICCV 2021, sec. 3.1 and appendix D). With
    the meta-layer ``gap`` it is plain global average pooling of the C channels, ``(B, C)``, and nothing else.

    The spectral part runs in its own dtype, outside autocast; the result has the dtype of the features.

    Args:
        in_channels: channels C of the feature map.
        dim: channels d that the covariance is taken of, at most C. ``None``: no reduction, d = C (AlexNet). Several
            numbers: as many reductions, one after the other, and d is the last.
        meta_layer: one of `META_LAYERS`.
        meta_options: options of the meta-layer, as in `app.spectral.functions.METHODS`, and ``route``.
        spectral_dtype: precision of the covariance and all that follows it.

    Attributes:
        out_features: length of the pooled vector.
        counts: what its decompositions went through (`FailureCounts`).
        spectrum: eigenvalues ``(B, r)`` of the covariances of the last batch, ascending, r = min(d, N), the other d - r
            are zero; ``None`` before the first, and where the layer decomposes nothing and `spectrum_wanted` is false.
        spectrum_wanted: decompose for `spectrum` also where the layer itself does not need it (Newton-Schulz by
            products). Monitors switch it on and off.

    Raises:
        ValueError: for a wrong name, option or dim, and in `forward` for a map of a single position.
        FloatingPointError: in `forward`, for features that are not finite.
    """

    def __init__(
        self,
        in_channels: int,
        dim: int | list[int] | None = 256,
        meta_layer: str = "isqrt-cov",
        meta_options: dict[str, Any] | None = None,
        spectral_dtype: Literal["float32", "float64"] = "float64",
    ) -> None:
        super().__init__({"float32": torch.float32, "float64": torch.float64}[spectral_dtype])
        channels = [in_channels]
        if meta_layer != "gap" and dim is not None:
            channels += [dim] if isinstance(dim, int) else dim
        d = channels[-1]
        self.dim = None if meta_layer == "gap" else d
        self._channels = " -> ".join(map(str, channels))
        self.use_meta_layer(meta_layer, meta_options)
        if meta_layer == "gap":
            self.reduction = None
            self.out_features = in_channels
            return
        if not all(2 <= width <= in_channels for width in channels):
            raise ValueError(f"dim must lie between 2 and the {in_channels} channels of the backbone, got {dim}")
        reductions = [module for step in pairwise(channels) for module in _reduction(*step)]
        self.reduction = nn.Sequential(*reductions) if reductions else None
        self.out_features = d * (d + 1) // 2
        rows, columns = torch.triu_indices(d, d)
        self.register_buffer("upper_triangle", rows * d + columns, persistent=False)

    @property
    def pre_svd_layer(self) -> nn.Conv2d | None:
        """The convolution whose output the covariance is taken of; ``None`` where the backbone ends with it."""
        return None if self.reduction is None else self.reduction[-3]

    def use_meta_layer(self, meta_layer: str, meta_options: dict[str, Any] | None = None) -> None:
        """Go on with another meta-layer (the hybrid protocol: Song et al., ICCV 2021, sec. 3.4).

        Raises:
            ValueError: for a wrong name or option, and between ``gap`` and the others, which differ in their shapes.
        """
        if meta_layer not in META_LAYERS:
            raise ValueError(f"unknown meta_layer {meta_layer!r}: choose one of {', '.join(META_LAYERS)}")
        if (meta_layer == "gap") != (self.dim is None):
            raise ValueError(f"{self._label} cannot become {meta_layer}: its output has another shape")
        meta_options = dict(meta_options or {})
        if meta_layer != "gap":
            parse_options(meta_layer, SquareRoot(), meta_options)  # wrong options fail here, not in the first batch
        elif meta_options:
            raise ValueError(f"meta_layer gap takes no options, got {', '.join(meta_options)}")
        self.meta_layer, self.meta_options = meta_layer, meta_options

    @property
    def _label(self) -> str:
        return f"{self.meta_layer} pooling of {self._channels} channels"

    def forward(self, features: Tensor) -> Tensor:
        if self.meta_layer == "gap":
            return features.mean((-2, -1))
        if features.shape[-2:].numel() < 2:
            raise ValueError("covariance pooling needs a feature map of more than one position: use larger images")
        if self.reduction is not None:
            features = self.reduction(features)
        X = features.flatten(2)
        Q = self._apply_spectral(covariance_sqrt, X, self.meta_layer, features, **self.meta_options)
        if self._owes_spectrum:
            self.spectrum = covariance_spectrum(X, self.spectral_dtype)
        return Q.flatten(1).index_select(1, self.upper_triangle)

    def _culprit(self, features: Tensor) -> str:
        weights = [name for name, value in self.named_parameters() if not value.isfinite().all()]
        if weights:
            return f"the weights {', '.join(weights)} are not finite: an earlier update diverged"
        if features.isfinite().all():
            return "the features are finite, their covariance overflows: use spectral_dtype float64"
        return "the weights of this layer are finite: look at the backbone, the learning rate or the images"

    def extra_repr(self) -> str:
        return self._label


def _reduction(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)

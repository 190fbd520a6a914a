"""Global covariance pooling: from a feature map to the normalised covariance of its channels.

Shapes: B batch, C channels in, d channels after the reduction, H x W = N positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..spectral import (
    METHODS,
    Execution,
    Logarithm,
    Method,
    Power,
    ScalarFunction,
    SpectralFunction,
    SquareRoot,
    covariance,
    covariance_function,
    covariance_spectrum,
    find_method,
)
from ..spectral.functions import runs_by_products
from ..spectral.methods import unknown_name
from .spectral_layer import DTYPES, SpectralLayer, name_of

MetaLayer = str | Method | nn.Module
"""The normalisation of a covariance: a name, a method, or a module ``(B, d, d) -> (B, d, d)``."""

FUNCTIONS: dict[str, partial[ScalarFunction]] = {
    "power": partial(Power, alpha=0.5),
    "log": partial(Logarithm, eps=1e-5),
}
"""The names that stand for a function of the covariance other than its square root, with its options and defaults.
The gradient is exact unless another method is given."""


class GlobalCovariancePooling(SpectralLayer):
    """Pools ``(B, C, H, W)`` to the upper triangle of the square root of the channel covariance, ``(B, d(d+1)/2)``.

    1x1 convolution to ``dim`` channels with batch norm and ReLU, covariance over the H x W positions, matrix square
    root, upper triangle (Li et al., ICCV 2017 and CVPR 2018; Song et al., ICCV 2021, sec. 3.1 and appendix D).

    The spectral part runs in its own dtype, outside autocast; the result has the dtype of the features.

    Args:
        in_channels: channels C of the feature map.
        dim: channels d of the covariance, at most C. ``None``: no reduction, d = C (AlexNet). Several numbers: that
            many reductions, one after the other; d is the last number.
        meta_layer: a name in `app.spectral.METHODS`, ``power`` or ``log``, a `Method` object, or a module
            ``(B, d, d) -> (B, d, d)`` that normalises the covariance by other means than its eigenvalues.
        meta_options: options of a meta-layer that is given by name, such as ``{"pade_degree": 50}``, and ``route``.
            ``power`` takes ``alpha`` (0.5), ``log`` takes ``eps`` (1e-5), which is added to the eigenvalues, and both
            take ``method`` (``svd-exact``) and its options.
        spectral_dtype: precision of the covariance and all that follows it.
        function: the function of the covariance; ``None``: its square root. Not used by a module.
        feature_normalisation: a module ``(B, d, N) -> (B, d, N)`` on the features before their covariance is taken.

    Attributes:
        out_features: length of the pooled vector.
        meta_options: the options of the meta-layer as they were given.
        normalisation: the module that normalises the covariance; ``None`` where a method does.

    Raises:
        ValueError: for a wrong name, option or dim, and in `forward` for a feature map with a single position.
        FloatingPointError: in `forward`, for non-finite features.
    """

    normalisation: nn.Module | None
    upper_triangle: Tensor

    def __init__(
        self,
        in_channels: int,
        dim: int | list[int] | None = 256,
        meta_layer: MetaLayer = "isqrt-cov",
        meta_options: Mapping[str, Any] | None = None,
        spectral_dtype: Literal["float32", "float64"] = "float64",
        function: ScalarFunction | None = None,
        feature_normalisation: nn.Module | None = None,
    ) -> None:
        super().__init__(DTYPES[spectral_dtype])
        widths = [dim] if isinstance(dim, int) else list(dim or [])
        self.channels = [in_channels, *widths]
        self.function = function
        self.use_meta_layer(meta_layer, meta_options)
        if not all(2 <= width <= in_channels for width in self.channels):
            raise ValueError(f"dim must lie between 2 and the {in_channels} channels of the backbone, got {dim}")
        reductions: list[nn.Module] = []
        for step in pairwise(self.channels):
            reductions += _reduction(*step)
        self.reduction = nn.Sequential(*reductions) if reductions else None
        self.feature_normalisation = feature_normalisation
        d = self.covariance_size
        self.out_features = d * (d + 1) // 2
        rows, columns = torch.triu_indices(d, d)
        self.register_buffer("upper_triangle", rows * d + columns, persistent=False)

    @property
    def covariance_size(self) -> int:
        return self.channels[-1]

    @property
    def pre_svd_layer(self) -> nn.Conv2d | None:
        """The convolution that feeds the covariance; ``None`` where the backbone ends with it."""
        return None if self.reduction is None else self.reduction[-3]  # type: ignore[return-value]

    @property
    def meta_layer(self) -> MetaLayer:
        """The meta-layer as it was given."""
        return self._method if self.normalisation is None else self.normalisation

    def use_meta_layer(self, meta_layer: MetaLayer, meta_options: Mapping[str, Any] | None = None) -> None:
        """Continue with another meta-layer (the hybrid protocol: Song et al., ICCV 2021, sec. 3.4).

        Raises:
            ValueError: for a wrong name or option, and for ``gap``, whose output has another shape.
        """
        options = dict(meta_options or {})
        if isinstance(meta_layer, nn.Module):
            if options:
                raise ValueError(
                    f"{type(meta_layer).__name__} takes its options in its constructor, got {', '.join(options)}"
                )
            self.normalisation, self.meta_options = meta_layer, options
            return
        if meta_layer == "gap":
            channels = " -> ".join(map(str, self.channels))
            raise ValueError(
                f"covariance pooling of {channels} channels cannot become gap: its output has another shape"
            )
        route = options.pop("route", "auto")
        function, method = self.function, meta_layer
        if isinstance(meta_layer, str):
            function, method = self._function_and_method(meta_layer, options)
        spectral_function = SpectralFunction(function or SquareRoot(), find_method(method, options))
        # report a wrong route here rather than in the first batch
        runs_by_products(spectral_function, Execution(route=route), torch.device("cpu"))
        self._method, self._spectral_function, self._route = meta_layer, spectral_function, route
        self.normalisation, self.meta_options = None, dict(meta_options or {})

    def _function_and_method(self, name: str, options: dict[str, Any]) -> tuple[ScalarFunction | None, str | Method]:
        """The function and the method that a name stands for; takes the options that are not the method's."""
        if name not in FUNCTIONS:
            if name not in METHODS:
                raise unknown_name("meta_layer", name, ("gap", *METHODS, *FUNCTIONS))
            return self.function, name
        if self.function is not None:
            raise ValueError(f"meta_layer {name} names a function itself: leave out function, or name a method")
        arguments = {}
        for option in FUNCTIONS[name].keywords:
            if option in options:
                arguments[option] = options.pop(option)
        return FUNCTIONS[name](**arguments), options.pop("method", "svd-exact")

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[-2:].numel() < 2:
            raise ValueError("covariance pooling needs a feature map of more than one position: use larger images")
        if self.reduction is not None:
            features = self.reduction(features)
        X = features.flatten(2)
        if self.feature_normalisation is not None:
            X = self.feature_normalisation(X)
        if self.normalisation is None:
            Q = self._apply_spectral(self._function_of_covariance, X, features, self._route)
        else:
            Q = self._apply_spectral(self._normalised_covariance, X, features)
        return Q.flatten(1).index_select(1, self.upper_triangle)

    def _function_of_covariance(self, X: Tensor, execution: Execution) -> Tensor:
        function = self._spectral_function
        return covariance_function(X, function.function, function.method, execution=execution)

    def _normalised_covariance(self, X: Tensor, execution: Execution) -> Tensor:
        assert self.normalisation is not None
        with torch.autocast(X.device.type, enabled=False):
            Q: Tensor = self.normalisation(covariance(X, execution.dtype))
        return Q.to(X.dtype)

    def _spectrum(self, X: Tensor) -> Tensor:
        return covariance_spectrum(X, self.spectral_dtype)

    def _describe(self) -> str:
        return f"{name_of(self.meta_layer)} pooling of {' -> '.join(map(str, self.channels))} channels"

    def _explain(self, features: Tensor) -> str:
        weights = [name for name, value in self.named_parameters() if not value.isfinite().all()]
        if weights:
            return f"the weights {', '.join(weights)} are not finite: an earlier update diverged"
        if features.isfinite().all():
            return "the features are finite, but their covariance overflows: use spectral_dtype float64"
        return "the weights of this layer are finite: check the backbone, the learning rate and the images"

    def extra_repr(self) -> str:
        return self._describe()


def _reduction(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)

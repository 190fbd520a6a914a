"""Decorrelated batch normalisation: ZCA whitening of a feature map over the batch and its positions.

Shapes: B batch, C channels in g groups of d = C / g, H x W = n positions, N = B n samples of every channel.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn

from app.layers.spectral_layer import SpectralLayer
from app.spectral import matrix_inverse_sqrt
from app.spectral.eigh import eigh
from app.spectral.functions import parse_options
from app.spectral.scalar_functions import InverseSquareRoot


class DecorrelatedBatchNorm2d(SpectralLayer):
    """Whitens ``(B, C, H, W)``: ``Y = weight * (P + eps I)^(-1/2) (X - mean) + bias`` (Song et al., ECCV 2022, eq. 43).

    X is ``(C, N)``, N = B H W, and ``P = (X - mean) (X - mean)^T / N`` its covariance, for each group of channels by
    itself. Batch norm makes every channel's variance one; this layer also makes different channels of a group
    uncorrelated: in training the output (before weight and bias) has the covariance ``P (P + eps I)^(-1)``, the
    identity up to eps. Directions in which the features do not vary, as where a convolution has more output channels
    than inputs, stay zero. With groups of one channel the layer is `torch.nn.BatchNorm2d`.

    In evaluation the running mean and the running covariance take the place of the batch's; the latter estimates the
    covariance without bias (N - 1), as batch norm's ``running_var``. Its inverse root is computed anew for every batch:
    that costs as much as in training, and nothing can go stale when a state is loaded.

    Statistics are sums in `spectral_dtype`, outside autocast; the result has the dtype of the features. N may be
    smaller than d, as eps makes every covariance invertible; only N = 1 is refused in training.

    Args:
        num_features: channels C.
        groups: groups g that are whitened separately; it divides C.
        eps: added to every eigenvalue of the covariance. It bounds what directions of little variance are amplified by,
            eps^(-1/2), which matters in evaluation, where the running covariance lags behind the weights: with 1e-5
            validation is erratic until the learning rate has decayed. 1e-2 is that of the paper's implementation.
        momentum: weight of the new batch in the running statistics.
        affine: learn weight and bias, one of each a channel.
        method: of the inverse square root, one of `app.spectral.METHODS` (not svd-topn, which makes eigenvalues zero).
        options: of the method, such as ``{"iterations": 7}``, and ``route``.
        spectral_dtype: precision of the covariance and its inverse square root.
        synchronised: statistics of the batches of all processes together, of any sizes, as `torch.nn.SyncBatchNorm`.

    Attributes:
        counts: what its decompositions went through (`FailureCounts`).
        spectrum: eigenvalues ``(g, d)`` of P of the last batch, ascending, without eps (in evaluation of the running
            covariance); what cannot be told from zero is zero. ``None`` before the first, and where the method
            decomposes nothing and `spectrum_wanted` is false.
        spectrum_wanted: decompose for `spectrum` also where the method itself does not need it (Newton-Schulz by
            products). Monitors switch it on and off.

    Raises:
        ValueError: for a wrong method, option or number; in `forward` for features of another shape, or, in training,
            of a single sample.
        FloatingPointError: in `forward`, for features that are not finite.

    Example:
        >>> Y = DecorrelatedBatchNorm2d(4)(torch.randn(8, 4, 5, 5)).transpose(0, 1).flatten(1)
        >>> (Y @ Y.T / Y.shape[1] - torch.eye(4)).abs().max().item() < 2e-2
        True
    """

    running_mean: Tensor
    running_covariance: Tensor

    def __init__(
        self,
        num_features: int,
        groups: int = 1,
        eps: float = 1e-2,
        momentum: float = 0.1,
        affine: bool = True,
        method: str = "svd-exact",
        options: dict[str, Any] | None = None,
        spectral_dtype: Literal["float32", "float64"] = "float64",
        synchronised: bool = False,
    ) -> None:
        if spectral_dtype not in ("float32", "float64"):
            raise ValueError(f"spectral_dtype must be float32 or float64, got {spectral_dtype}")
        super().__init__({"float32": torch.float32, "float64": torch.float64}[spectral_dtype])
        for name, value in {"eps": eps, "momentum": momentum}.items():
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} of the decorrelation must be a number, got {value!r}")
        if not isinstance(groups, int):
            raise ValueError(f"groups must be a whole number, got {groups!r}")
        if num_features < 1 or groups < 1 or num_features % groups:
            raise ValueError(f"groups must divide the {num_features} channels, got {groups}")
        if not 0 < eps < float("inf"):
            raise ValueError(f"eps of the decorrelation must be positive, got {eps}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum of the decorrelation must lie in [0, 1], got {momentum}")
        self.num_features, self.groups, self.eps, self.momentum = num_features, groups, eps, momentum
        self.method, self.options = method, dict(options or {})
        parse_options(method, InverseSquareRoot(), self.options)  # wrong options fail here, not in the first batch
        self.synchronised = synchronised
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        d = num_features // groups
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_covariance", torch.eye(d).repeat(groups, 1, 1))

    @property
    def _label(self) -> str:
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{self.method} decorrelation of {self.num_features} channels{groups}"

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim != 4 or features.shape[1] != self.num_features:
            raise ValueError(f"{self._label}: features must be (B, C, H, W), got {tuple(features.shape)}")
        B, C, H, W = features.shape
        g, d = self.groups, C // self.groups
        with torch.autocast(features.device.type, enabled=False):
            X = features.to(torch.promote_types(features.dtype, torch.float32)).reshape(B, g, d, H * W)
            if self.training:
                X, covariance = self._centre_and_covariance(X)
            else:
                X, covariance = X - self.running_mean.to(X.dtype).view(g, d, 1), self.running_covariance
            S = self._inverse_sqrt(covariance, features).to(X.dtype)
            if self.weight is not None and self.bias is not None:
                Y = (self.weight.to(X.dtype).view(g, d, 1) * S) @ X + self.bias.to(X.dtype).view(g, d, 1)
            else:
                Y = S @ X
        return Y.reshape(B, C, H, W).to(features.dtype)

    def _centre_and_covariance(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Centred features ``(B, g, d, n)`` and their covariance ``(g, d, d)``; updates the running statistics."""
        together = self.synchronised and _processes() > 1
        N = X.shape[0] * X.shape[3]
        if N < 2 and not together:
            raise ValueError(
                f"{self._label}: one sample of each channel has no covariance, got features of {len(X)} x "
                f"{X.shape[3]} positions: use a larger batch or larger images"
            )
        add_up = _SumOverProcesses.apply if together else torch.Tensor.clone
        # the sums and the number of samples in one message
        sums = X.sum((0, 3), dtype=self.spectral_dtype)
        sums = add_up(torch.cat([sums.flatten(), sums.new_full((1,), N)]))
        samples = sums[-1]
        mean = (sums[:-1] / samples).view(self.groups, -1, 1)
        X = X - mean.to(X.dtype)
        Z = X.to(self.spectral_dtype)
        covariance = add_up((Z @ Z.mT).sum(0)) / samples
        self._update_running_statistics(mean.detach(), covariance.detach() * samples / (samples - 1).clamp_min(1))
        return X, covariance

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, covariance: Tensor) -> None:
        self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
        self.running_covariance.lerp_(covariance.to(self.running_covariance.dtype), self.momentum)

    def _inverse_sqrt(self, covariance: Tensor, features: Tensor) -> Tensor:
        S = self._apply_spectral(matrix_inverse_sqrt, covariance, self.method, features, eps=self.eps, **self.options)
        if self._owes_spectrum:
            self._observe(eigh(covariance.detach().to(self.spectral_dtype))[0] + self.eps)
        return S

    def _observe(self, eigenvalues: Tensor) -> None:
        """Keep the eigenvalues of P, given those of ``P + eps I``, where they stand above the latter's round-off."""
        roundoff = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1:]
        eigenvalues = eigenvalues - self.eps
        self.spectrum = eigenvalues.masked_fill(eigenvalues <= roundoff, 0)

    def _culprit(self, features: Tensor) -> str:
        if not features.isfinite().all():
            return "the features are not finite: look at the layers before, the learning rate or the images"
        if self.training:
            return "the features of this process are finite: their covariance or another process's features are not"
        return "the running covariance is not finite: it was trained on features that were not"

    def extra_repr(self) -> str:
        return f"{self._label}, eps={self.eps}, momentum={self.momentum}, synchronised={self.synchronised}"


def _processes() -> int:
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialised else 1


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; the gradient is the sum of all processes' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)

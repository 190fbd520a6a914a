"""Decorrelated batch normalisation: ZCA whitening of a feature map over the batch and its positions.

Shapes: B batch, C channels in g groups of d = C / g, H x W = n positions, N = B n samples of every channel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed
import torch.distributed.nn.functional
from torch import Tensor, nn

from ..spectral import Execution, InverseSquareRoot, Method, SpectralFunction, find_method, matrix_inverse_sqrt
from ..spectral.eigh import eigh
from ..spectral.functions import runs_by_products
from .spectral_layer import DTYPES, SpectralLayer, name_of


class DecorrelatedBatchNorm2d(SpectralLayer):
    """Whitens ``(B, C, H, W)``: ``Y = weight * (P + eps I)^(-1/2) (X - mean) + bias`` (Song et al., ECCV 2022, eq. 43).

    X is ``(C, N)``, N = B H W, and ``P = (X - mean) (X - mean)^T / N`` its covariance, separately for each group of
    channels. Batch norm makes every channel's variance one; this layer also makes different channels of a group
    uncorrelated: in training the output (before weight and bias) has the covariance ``P (P + eps I)^(-1)``, the
    identity up to eps. Directions in which the features do not vary, such as those of a convolution with more output
    channels than inputs, stay zero. With groups of one channel the layer is `torch.nn.BatchNorm2d`.

    In evaluation, the running mean and covariance take the place of those of the batch; the latter estimates the
    covariance without bias (N - 1), as batch norm's ``running_var``. Its inverse root is computed anew for every batch:
    that costs as much as in training, but nothing can go stale when a state is loaded.

    Statistics are computed in `spectral_dtype`, outside autocast; the result has the dtype of the features. N may be
    smaller than d, as eps makes every covariance invertible; only N = 1 is an error, in training. Observers receive the
    eigenvalues ``(g, d)`` of P without eps, and in evaluation those of the running covariance; numerically zero
    eigenvalues are reported as zero.

    Args:
        num_features: channels C.
        groups: groups g that are whitened separately; it divides C.
        eps: added to every eigenvalue of the covariance. It limits the amplification of directions with little variance
            to eps^(-1/2). That matters in evaluation, where the running covariance lags the weights: with 1e-5,
            validation is erratic until the learning rate has decayed. The paper's implementation uses 1e-2.
        momentum: weight of the new batch in the running statistics.
        affine: learn a weight and a bias for each channel.
        method: method of the inverse square root: a name in `app.spectral.METHODS` (not svd-topn, which makes
            eigenvalues zero) or a `Method` object.
        options: options of a method that is given by name, such as ``{"iterations": 7}``, and ``route``.
        spectral_dtype: precision of the covariance and its inverse square root.
        synchronised: compute statistics over the batches of all processes (of any size), as `torch.nn.SyncBatchNorm`
            does.

    Raises:
        ValueError: for a wrong method, option or number; in `forward` for features of another shape, or, in training,
            of a single sample.
        FloatingPointError: in `forward`, for non-finite features.

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
        method: str | Method = "svd-exact",
        options: dict[str, Any] | None = None,
        spectral_dtype: Literal["float32", "float64"] = "float64",
        synchronised: bool = False,
    ) -> None:
        if spectral_dtype not in DTYPES:
            raise ValueError(f"spectral_dtype must be float32 or float64, got {spectral_dtype}")
        super().__init__(DTYPES[spectral_dtype])
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
        own = dict(self.options)
        self._route = own.pop("route", "auto")
        spectral_function = SpectralFunction(InverseSquareRoot(), find_method(method, own))
        # report wrong options and routes here rather than in the first batch
        runs_by_products(spectral_function, Execution(route=self._route), torch.device("cpu"))
        self._method = spectral_function.method
        self.synchronised = synchronised
        self.weight = self.bias = None
        if affine:
            self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        d = num_features // groups
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_covariance", torch.eye(d).repeat(groups, 1, 1))

    @property
    def covariance_size(self) -> int:
        return self.num_features // self.groups

    def forward(self, features: Tensor) -> Tensor:
        if features.ndim != 4 or features.shape[1] != self.num_features:
            raise ValueError(f"{self._describe()}: features must be (B, C, H, W), got {tuple(features.shape)}")
        B, C, H, W = features.shape
        g, d = self.groups, C // self.groups
        with torch.autocast(features.device.type, enabled=False):
            X = features.to(torch.promote_types(features.dtype, torch.float32)).reshape(B, g, d, H * W)
            if self.training:
                X, mean, covariance, samples = self._centre_and_covariance(X)
                S = self._apply_spectral(self._inverse_sqrt, covariance, features, self._route)
                self._update_running_statistics(mean.detach(), covariance.detach(), samples)
            else:
                X = X - self.running_mean.to(X.dtype).view(g, d, 1)
                S = self._apply_spectral(self._running_inverse_sqrt(X), self.running_covariance, features, self._route)
            S = S.to(X.dtype)
            if self.weight is not None and self.bias is not None:
                Y = (self.weight.to(X.dtype).view(g, d, 1) * S) @ X + self.bias.to(X.dtype).view(g, d, 1)
            else:
                Y = S @ X
        return Y.reshape(B, C, H, W).to(features.dtype)

    def _centre_and_covariance(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Centred features ``(B, g, d, n)``, their mean ``(g, d, 1)``, covariance ``(g, d, d)`` and number N."""
        together = self.synchronised and _processes() > 1
        N = X.shape[0] * X.shape[3]
        if N < 2 and not together:
            raise ValueError(
                f"{self._describe()}: one sample of each channel has no covariance, got features of {len(X)} x "
                f"{X.shape[3]} positions: use a larger batch or larger images"
            )
        add_up = torch.distributed.nn.functional.all_reduce if together else torch.Tensor.clone
        # the sums and the number of samples in one message
        sums = X.sum((0, 3), dtype=self.spectral_dtype)
        sums = add_up(torch.cat([sums.flatten(), sums.new_full((1,), N)]))
        samples = sums[-1].detach()
        mean = (sums[:-1] / samples).view(self.groups, -1, 1)
        X = X - mean.to(X.dtype)
        Z = X.to(self.spectral_dtype)
        return X, mean, add_up((Z @ Z.mT).sum(0)) / samples, samples

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, covariance: Tensor, samples: Tensor) -> None:
        """Average the statistics of a batch into the running ones, unless they are not finite.

        The decision stays on the device: reading it back would make every step wait.
        """
        finite = covariance.diagonal(dim1=-2, dim2=-1).sum().isfinite()
        unbiased = covariance * samples / (samples - 1).clamp_min(1)
        for running, new in ((self.running_mean, mean.flatten()), (self.running_covariance, unbiased)):
            average = running.lerp(new.to(running.dtype), self.momentum)
            running.copy_(torch.where(finite, average, running))

    def _inverse_sqrt(self, P: Tensor, execution: Execution) -> Tensor:
        return matrix_inverse_sqrt(P, self._method, eps=self.eps, execution=execution)

    def _running_inverse_sqrt(self, X: Tensor) -> Callable[[Tensor, Execution], Tensor]:
        def inverse_sqrt(P: Tensor, execution: Execution) -> Tensor:
            # the running covariance is finite whatever the features are
            if not X.sum().isfinite():
                raise FloatingPointError("features contain non-finite values")
            return self._inverse_sqrt(P, execution)

        return inverse_sqrt

    def _spectrum(self, X: Tensor) -> Tensor:
        return eigh(X.detach().to(self.spectral_dtype))[0] + self.eps

    def _report(self, eigenvalues: Tensor) -> None:
        """Report the eigenvalues of P, given those of ``P + eps I``, as far as they exceed the latter's round-off."""
        roundoff = eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * eigenvalues[..., -1:]
        eigenvalues = eigenvalues - self.eps
        super()._report(eigenvalues.masked_fill(eigenvalues <= roundoff, 0))

    def _describe(self) -> str:
        text = f"{name_of(self.method)} decorrelation of {self.num_features} channels"
        return f"{text} in {self.groups} groups" if self.groups > 1 else text

    def _explain(self, features: Tensor) -> str:
        if not features.isfinite().all():
            return "the features are not finite: check the preceding layers, the learning rate and the images"
        if self.training:
            return "the features of this process are finite: their covariance or another process's features are not"
        return "the running covariance is not finite: it was computed from non-finite features"

    def extra_repr(self) -> str:
        return f"{self._describe()}, eps={self.eps}, momentum={self.momentum}, synchronised={self.synchronised}"


def _processes() -> int:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1

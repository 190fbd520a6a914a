"""The base class of layers that compute a function of a covariance, and the interface that callbacks use.

Shapes: B matrices (samples of a batch, or groups of a decorrelated batch norm), r eigenvalues of each.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..spectral import Execution, FailureCounts
from ..spectral.execution import Route

SpectrumObserver = Callable[[Tensor], None]
"""Receives the eigenvalues ``(B, r)`` of a batch, ascending and detached."""

NonFiniteHandler = Callable[[str], None]
"""Receives the message of the error that a layer would have raised."""

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""The precisions of the spectral part, by the names that configurations use."""


class SpectralLayer(nn.Module):
    """A layer that computes a function of a covariance, counts failures, reports spectra and names itself in errors.

    Monitors and treatments find these layers by `spectral_layers`, and use only their public interface. A layer of your
    own becomes visible to them by deriving from this class and calling `_apply_spectral` in its forward pass.

    Attributes:
        spectral_dtype: precision of the spectral part.
        counts: failures of its decompositions since it was built (`FailureCounts`).
        non_finite_handler: ``None`` raises a FloatingPointError at non-finite values. A function is called with the
            message instead, and the layer returns NaN, forward and backward: the processes of a run stay in step until
            they decide together (`callbacks.NonFinitePolicy`).
    """

    def __init__(self, spectral_dtype: torch.dtype) -> None:
        super().__init__()
        self.spectral_dtype = spectral_dtype
        self.counts = FailureCounts()
        self.non_finite_handler: NonFiniteHandler | None = None
        self._observers: dict[int, SpectrumObserver] = OrderedDict()

    @property
    def covariance_size(self) -> int:
        """Channels d of a covariance; with fewer positions than channels the layer reports r < d eigenvalues."""
        raise NotImplementedError

    def observe_spectrum(self, observer: SpectrumObserver) -> RemovableHandle:
        """Report the eigenvalues of every batch to a function until the returned handle is removed.

        A layer that needs no eigenvalues itself (Newton-Schulz by products) decomposes its covariances as long as an
        observer is registered. Matrices that could not be decomposed are left out.
        """
        handle = RemovableHandle(self._observers)
        self._observers[handle.id] = observer
        return handle

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Run forward passes that leave no trace: observers are not called, and the counts do not change."""
        observers, counts = self._observers, self.counts
        self._observers, self.counts = OrderedDict(), copy.copy(counts)
        try:
            yield
        finally:
            self._observers, self.counts = observers, counts

    def _describe(self) -> str:
        """The layer in a few words, for errors."""
        raise NotImplementedError

    def _explain(self, features: Tensor) -> str:
        """The likely cause of a covariance that is not finite."""
        raise NotImplementedError

    def _spectrum(self, X: Tensor) -> Tensor:
        """The eigenvalues of the covariances of X, for a method that decomposes nothing."""
        raise NotImplementedError

    def _apply_spectral(
        self, function: Callable[[Tensor, Execution], Tensor], X: Tensor, features: Tensor, route: Route = "auto"
    ) -> Tensor:
        """Apply a function of `app.spectral` to X, with the precision, counts and observers of this layer.

        Args:
            function: takes X and an `Execution`.
            X: features or covariances.
            features: the input of the layer, for errors.
            route: see `Execution`.
        """
        reported = False

        def report(eigenvalues: Tensor) -> None:
            nonlocal reported
            reported = True
            self._report(eigenvalues)

        execution = Execution(self.spectral_dtype, route, self.counts, report)
        try:
            result = function(X, execution)
            if self._observers and not reported:
                self._report(self._spectrum(X))
        except FloatingPointError as error:
            message = f"{self._describe()}: {error}; {self._explain(features)}"
            if self.non_finite_handler is None:
                raise FloatingPointError(message) from error
            self.non_finite_handler(message)
            # NaN of the right shape that depends on all of X
            return (X * torch.nan).sum(-1, keepdim=True).expand(*X.shape[:-1], X.shape[-2])
        return result

    def _report(self, eigenvalues: Tensor) -> None:
        for observer in tuple(self._observers.values()):
            observer(eigenvalues.detach())


def name_of(method: object) -> str:
    """The name of a method as it was given: its short name, or the class of an object."""
    return method if isinstance(method, str) else type(method).__name__


def spectral_layers(model: nn.Module) -> dict[str, SpectralLayer]:
    """The layers of a model that compute a function of a covariance, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SpectralLayer)}

"""What the layers that take a function of a covariance have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from app.spectral import FailureCounts


class SpectralLayer(nn.Module):
    """A layer that counts what its decompositions went through, shows its last spectrum, and names itself in errors.

    Attributes:
        spectral_dtype: precision of the spectral part.
        counts: what its decompositions went through (`FailureCounts`).
        spectrum: the eigenvalues of the last batch; ``None`` before the first, and where nothing was decomposed.
        spectrum_wanted: decompose for `spectrum` also where the layer itself does not need it.
    """

    def __init__(self, spectral_dtype: torch.dtype) -> None:
        super().__init__()
        self.spectral_dtype = spectral_dtype
        self.counts = FailureCounts()
        self.spectrum: Tensor | None = None
        self.spectrum_wanted = False

    @property
    def _label(self) -> str:
        """What it is, for errors."""
        raise NotImplementedError

    def _culprit(self, features: Tensor) -> str:
        """What is to blame for features, or a covariance, that are not finite."""
        raise NotImplementedError

    def _apply_spectral(
        self, function: Callable[..., Tensor], X: Tensor, method: str, features: Tensor, **options: Any
    ) -> Tensor:
        """A function of `app.spectral` of X, which leaves the spectrum; features are what the layer was given."""
        self.spectrum = None
        try:
            return function(X, method, dtype=self.spectral_dtype, counts=self.counts, observe=self._observe, **options)
        except FloatingPointError as error:
            raise FloatingPointError(f"{self._label}: {error}; {self._culprit(features)}") from error

    def _observe(self, eigenvalues: Tensor) -> None:
        self.spectrum = eigenvalues

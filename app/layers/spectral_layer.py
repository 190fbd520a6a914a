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
        refuses_non_finite: what is not finite is an error. If not, it comes out as NaN, forward and backward, so that
            all processes of a run go on together until they decide together (`callbacks.NonFinitePolicy`).
        refusal: what the error of the last batch would have been, if there was one.
    """

    def __init__(self, spectral_dtype: torch.dtype) -> None:
        super().__init__()
        self.spectral_dtype = spectral_dtype
        self.counts = FailureCounts()
        self.spectrum: Tensor | None = None
        self.spectrum_wanted = False
        self.refuses_non_finite = True
        self.refusal: str | None = None

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
        self.spectrum, self.refusal = None, None
        try:
            return function(X, method, dtype=self.spectral_dtype, counts=self.counts, observe=self._observe, **options)
        except FloatingPointError as error:
            self.refusal = f"{self._label}: {error}; {self._culprit(features)}"
            if self.refuses_non_finite:
                raise FloatingPointError(self.refusal) from error
        # NaN of the right shape that depends on all of X
        return (X * torch.nan).sum(-1, keepdim=True).expand(*X.shape[:-1], X.shape[-2])

    @property
    def _owes_spectrum(self) -> bool:
        """Whether the eigenvalues of the last batch are wanted, and could be had, but the layer did not need them."""
        return self.spectrum_wanted and self.spectrum is None and self.refusal is None

    def _observe(self, eigenvalues: Tensor) -> None:
        self.spectrum = eigenvalues

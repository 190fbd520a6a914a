"""The settings of a call of a spectral function that do not depend on its method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .eigh import FailureCounts

Route = Literal["auto", "eigenbasis", "products"]


@dataclass(frozen=True)
class Execution:
    """The way a spectral function is run: its precision, its route, and who receives its failures and spectra.

    Attributes:
        dtype: precision of the spectral part, float32 or float64.
        route: route of the iterations: ``eigenbasis`` (a decomposition and the scalar iteration), ``products`` (only
            matrix products) or ``auto`` (the eigenbasis on a CPU, products elsewhere).
        counts: where failures are counted; ``None``: nowhere.
        observer: receives the eigenvalues ``(B, r)``, ascending, of the matrices that were decomposed; the route
            ``products`` decomposes none.

    Raises:
        ValueError: for any other dtype or route.
    """

    dtype: torch.dtype = torch.float64
    route: Route = "auto"
    counts: FailureCounts | None = None
    observer: Callable[[Tensor], None] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype of the spectral part must be torch.float32 or torch.float64, got {self.dtype}")
        if self.route not in get_args(Route):
            raise ValueError(f"unknown route {self.route!r}: choose auto, eigenbasis or products")

    def report(self, eigenvalues: Tensor) -> None:
        """Hand the eigenvalues to the observer, if there is one."""
        if self.observer is not None:
            self.observer(eigenvalues)

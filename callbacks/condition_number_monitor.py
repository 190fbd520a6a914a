"""The conditioning of the covariances that the spectral layers decompose.

Shapes: B batch (or groups of a decorrelated batch norm), r eigenvalues that a layer reports, d size of its covariance,
L spectral layers of the model.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle

from ._library import SpectralLayer, spectral_layers
from ._tags import suffix

QUANTITIES = (
    "condition_number",
    "log10_condition_number",
    "effective_condition_number",
    "rank",
    "eigenvalue_ratio",
    "share_below_eps",
)


class ConditionNumberMonitor(pl.Callback):
    """Logs the conditioning of the covariances in training, from the eigenvalues that the layers compute anyway.

    Let l_1 >= ... >= l_d be the eigenvalues of a covariance and eps that of the layer's ``spectral_dtype`` (2.2e-16 in
    double precision; the papers' EPS). Each quantity is the mean over the batch and over all processes:

    - ``covariance/condition_number``: ``l_1 / max(l_d, eps)`` (Song et al., ICCV 2021, sec. 3.4 and appendix D; ECCV
      2022, eq. 1). With fewer positions than channels l_d is zero, and this is ``l_1 / eps``.
    - ``covariance/log10_condition_number``: mean of its logarithms, which no single image dominates.
    - ``covariance/effective_condition_number``: l_1 over the smallest numerically nonzero eigenvalue.
    - ``covariance/rank``: number of numerically nonzero eigenvalues, those above ``d eps l_1``.
    - ``covariance/eigenvalue_ratio``: ``l_1 / max(l_2, eps)``, which power iteration needs above 1 (ICCV 2021, fig. 3).
    - ``covariance/share_below_eps``: share of the d eigenvalues below eps.

    The same tags with ``_epoch`` are the means over the measured steps of an epoch (ICCV 2021, table 1). In a model
    with several spectral layers each layer has its own tags, which end in ``/NAME``; in a model without one nothing is
    logged. Loggers that draw histograms get ``covariance/log10_eigenvalues``, the spectra on the first process.

    For decorrelated batch norm it is the covariance without the eps that the layer adds. Its features have the rounding
    errors of float32: directions in which they do not vary have eigenvalues of about 1e-14 l_1, not zero.

    A layer that needs no eigenvalues itself (Newton-Schulz by products) decomposes its covariances for the monitor, in
    the measured steps only. With accumulated gradients, the first batch of each step is measured. Validation is not
    measured.

    Works with every LightningModule; it observes the `SpectralLayer` modules in it.

    Args:
        every_n_steps: steps between two measurements; null: the trainer's ``log_every_n_steps``.
        histogram_every_n_steps: least number of steps between two histograms, drawn in measured steps; null: none.

    Raises:
        ValueError: if a number of steps is not positive.
    """

    def __init__(self, every_n_steps: int | None = None, histogram_every_n_steps: int | None = 1000) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("histogram_every_n_steps", histogram_every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"ConditionNumberMonitor: {name} must be at least 1, got {value}")
        self.every_n_steps, self.histogram_every_n_steps = every_n_steps, histogram_every_n_steps
        self._layers: dict[str, SpectralLayer] = {}
        self._spectra: dict[str, Tensor] = {}  # of the step that is measured, (B, r) each
        self._observers: list[RemovableHandle] = []
        self._period = 0
        self._step: int | None = None  # the last one that was measured
        self._sums: dict[str, list[float]] = {}  # over the epoch, of each layer: the quantities, number of matrices

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._layers = spectral_layers(pl_module)
        self._period = self.every_n_steps or trainer.log_every_n_steps  # type: ignore[attr-defined]
        self._step = None
        if not self._layers:
            rank_zero_warn("ConditionNumberMonitor: the model has no layer with a covariance, nothing is logged")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # The second of accumulated batches belongs to the same step as the first.
        if not self._period or step % self._period or step == self._step:
            return
        self._step = step
        for name, layer in self._layers.items():
            self._observers.append(layer.observe_spectrum(partial(self._receive, name)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._observers:
            return
        self._stop_observing()
        sums = torch.stack([self._sums_of(name, pl_module.device) for name in self._layers])
        rows = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        metrics: dict[str, float] = {}
        for layer, row in zip(self._layers, rows, strict=True):
            before = self._sums.get(layer, [0.0] * len(row))
            self._sums[layer] = [a + b for a, b in zip(before, row, strict=True)]
            metrics |= self._means(layer, row)
        if metrics:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=self._step)
        if trainer.is_global_zero:
            self._draw_histograms(trainer)
        self._spectra.clear()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for layer, row in self._sums.items():
            for tag, mean in self._means(layer, row, "_epoch").items():
                pl_module.log(tag, mean, on_epoch=True, sync_dist=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop_observing()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = state_dict["sums"]

    def _receive(self, layer: str, eigenvalues: Tensor) -> None:
        if len(eigenvalues):  # matrices that could not be decomposed are left out
            self._spectra[layer] = eigenvalues

    def _stop_observing(self) -> None:
        for observer in self._observers:
            observer.remove()
        self._observers.clear()

    def _sums_of(self, layer: str, device: torch.device) -> Tensor:
        """Sums of the quantities over the matrices of the measured step, and the number of matrices, ``(7,)``."""
        spectrum = self._spectra.get(layer)
        if spectrum is None:
            return torch.zeros(len(QUANTITIES) + 1, dtype=torch.float64, device=device)
        values = conditioning(spectrum, self._layers[layer].covariance_size)
        return torch.cat([values.sum(0), values.new_tensor([len(values)])])

    def _means(self, layer: str, row: list[float], period: str = "") -> dict[str, float]:
        *sums, matrices = row
        if not matrices:
            return {}
        end = period + suffix(layer, self._layers)
        return {f"covariance/{name}{end}": total / matrices for name, total in zip(QUANTITIES, sums, strict=True)}

    def _draw_histograms(self, trainer: pl.Trainer) -> None:
        """Draw the spectra, if this is the first measured step of a period of histograms."""
        step, every = self._step, self.histogram_every_n_steps
        if step is None or every is None or step % every >= self._period:
            return
        experiments: list[Any] = [getattr(logger, "experiment", None) for logger in trainer.loggers]
        drawing = [experiment for experiment in experiments if hasattr(experiment, "add_histogram")]
        for name, spectrum in self._spectra.items():
            tag = f"covariance/log10_eigenvalues{suffix(name, self._layers)}"
            logarithms = spectrum.clamp_min(torch.finfo(spectrum.dtype).eps).log10().flatten().cpu()
            for experiment in drawing:
                experiment.add_histogram(tag, logarithms, step)


def conditioning(spectrum: Tensor, d: int) -> Tensor:
    """The quantities of `ConditionNumberMonitor` for each matrix.

    Args:
        spectrum: ``(B, r)`` eigenvalues, ascending; the other d - r are zero.
        d: size of the matrices.

    Returns:
        ``(B, 6)`` in float64, in the order of `QUANTITIES`.
    """
    eps = torch.finfo(spectrum.dtype).eps
    eigenvalues = pad(spectrum.double(), (max(d - spectrum.shape[-1], 0), 0))  # float32 would overflow in l_1 / eps
    d = eigenvalues.shape[-1]
    largest = eigenvalues[:, -1]
    clamped = eigenvalues.clamp_min(eps)  # so do the papers, and a matrix of zeros has condition number 1
    condition = clamped[:, -1] / clamped[:, 0]
    rank = (eigenvalues > d * eps * largest[:, None]).sum(-1)
    smallest = eigenvalues.gather(-1, (d - rank).clamp_max(d - 1)[:, None])[:, 0]
    effective = torch.where(rank > 0, largest / smallest, 1.0)
    ratio = clamped[:, -1] / clamped[:, max(d - 2, 0)]
    below = (eigenvalues < eps).double().mean(-1)
    return torch.stack([condition, condition.log10(), effective, rank.double(), ratio, below], -1)

"""How well conditioned the covariances are that the spectral layers decompose.

Shapes: B batch (or groups of a decorrelated batch norm), r eigenvalues that a layer gives, d size of its covariance,
L spectral layers of the model.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import pad

from callbacks._spectral_layers import spectral_layers, suffix

QUANTITIES = (
    "condition_number",
    "log10_condition_number",
    "effective_condition_number",
    "rank",
    "eigenvalue_ratio",
    "share_below_eps",
)


class ConditionNumberMonitor(pl.Callback):
    """Logs the conditioning of the covariances in training, from the eigenvalues that the layers have anyway.

    With l_1 >= ... >= l_d the eigenvalues of a covariance and eps that of the layer's ``spectral_dtype`` (2.2e-16 in
    double precision; what the papers call EPS), each the mean over the batch and over all processes:

    - ``covariance/condition_number``: ``l_1 / max(l_d, eps)`` (Song et al., ICCV 2021, sec. 3.4 and appendix D; ECCV
      2022, eq. 1). With fewer positions than channels l_d is zero, and this is ``l_1 / eps``.
    - ``covariance/log10_condition_number``: mean of its logarithms, which no single image dominates.
    - ``covariance/effective_condition_number``: l_1 over the smallest eigenvalue that is numerically not zero.
    - ``covariance/rank``: number of eigenvalues that are numerically not zero, above ``d eps l_1``.
    - ``covariance/eigenvalue_ratio``: ``l_1 / max(l_2, eps)``, which power iteration needs above 1 (ICCV 2021, fig. 3).
    - ``covariance/share_below_eps``: share of the d eigenvalues below eps.

    The same tags with ``_epoch`` are the means over the measured steps of an epoch (ICCV 2021, table 1). With more than
    one spectral layer each has its own tags, which end in ``/NAME``; with ``gap`` alone there is nothing to log.
    Loggers that can, get ``covariance/log10_eigenvalues``, a histogram of the spectra on the first process.

    In decorrelated batch norm it is the covariance without the eps that the layer adds. Its features have the rounding
    errors of float32: directions in which they do not vary have eigenvalues of about 1e-14 l_1, not zero.

    A layer that decomposes nothing (Newton-Schulz by products) decomposes for the monitor in the measured steps only.
    Of accumulated batches the first of a step is measured. Validation is not.

    Args:
        every_n_steps: steps between two measurements; null: the trainer's ``log_every_n_steps``.
        histogram_every_n_steps: least number of steps between two histograms, made in measured steps; null: none.
    """

    def __init__(self, every_n_steps: int | None = None, histogram_every_n_steps: int | None = 1000) -> None:
        for name, value in (("every_n_steps", every_n_steps), ("histogram_every_n_steps", histogram_every_n_steps)):
            if value is not None and value < 1:
                raise ValueError(f"ConditionNumberMonitor: {name} must be at least 1, got {value}")
        self.every_n_steps, self.histogram_every_n_steps = every_n_steps, histogram_every_n_steps
        self._layers: dict[str, Any] = {}
        self._period = 0
        self._step: int | None = None
        self._measuring = False
        self._sums: dict[str, list[float]] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._layers = spectral_layers(pl_module)
        self._period = self.every_n_steps or trainer.log_every_n_steps
        self._step = None
        if not self._layers:
            rank_zero_warn("ConditionNumberMonitor: the model has no layer with a covariance, nothing is logged")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._sums = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._measuring = bool(self._layers and self._period) and step % self._period == 0 and step != self._step
        if self._measuring:
            self._step = step
        self._want_spectra(self._measuring)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._measuring:
            return
        self._measuring = False
        self._want_spectra(False)
        sums = torch.stack([_sums(layer, pl_module.device) for layer in self._layers.values()])
        rows = trainer.strategy.reduce(sums, reduce_op="sum").tolist()  # type: ignore[union-attr]
        metrics: dict[str, float] = {}
        for layer, row in zip(self._layers, rows, strict=True):
            before = self._sums.get(layer, [0.0] * len(row))
            self._sums[layer] = [a + b for a, b in zip(before, row, strict=True)]
            metrics |= self._means(layer, row)
        for logger in trainer.loggers if metrics else ():
            logger.log_metrics(metrics, step=self._step)
        if trainer.is_global_zero:
            self._draw_histograms(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for layer, row in self._sums.items():
            for tag, mean in self._means(layer, row, "_epoch").items():
                pl_module.log(tag, mean, on_epoch=True, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sums = state_dict["sums"]

    def _means(self, layer: str, row: list[float], period: str = "") -> dict[str, float]:
        *sums, matrices = row
        end = period + suffix(layer, self._layers)
        return {f"covariance/{name}{end}": s / matrices for name, s in zip(QUANTITIES, sums, strict=True) if matrices}

    def _want_spectra(self, wanted: bool) -> None:
        for layer in self._layers.values():
            layer.spectrum_wanted = wanted

    def _draw_histograms(self, trainer: pl.Trainer) -> None:
        step, every = self._step, self.histogram_every_n_steps
        if step is None or every is None or step % every >= self._period:  # not the first measured step of a period
            return
        drawers = [
            d
            for d in (getattr(getattr(o, "experiment", None), "add_histogram", None) for o in trainer.loggers)
            if d is not None
        ]
        for name, layer in self._layers.items() if drawers else ():
            spectrum = _solved(layer)
            if spectrum is not None:
                values = spectrum.clamp_min(torch.finfo(spectrum.dtype).eps).log10().flatten().cpu()
                for draw in drawers:
                    draw(f"covariance/log10_eigenvalues{suffix(name, self._layers)}", values, step)


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


def _sums(layer: Any, device: torch.device) -> Tensor:
    """Sums over the batch of the last step, and the number of matrices in it, ``(7,)``."""
    spectrum = _solved(layer)
    if spectrum is None:
        return torch.zeros(len(QUANTITIES) + 1, dtype=torch.float64, device=device)
    values = conditioning(spectrum, getattr(layer, "dim", None) or 0)
    return torch.cat([values.sum(0), values.new_tensor([len(values)])])


def _solved(layer: Any) -> Tensor | None:
    """Eigenvalues ``(B, r)`` of the matrices that could be decomposed, if there are any."""
    spectrum = layer.spectrum
    if spectrum is None:
        return None
    spectrum = spectrum.detach().reshape(-1, spectrum.shape[-1])
    spectrum = spectrum[spectrum.isfinite().all(-1)]
    return spectrum if len(spectrum) else None

"""The variation of the loss and of its gradient along the gradient: the optimisation landscape of a network."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from . import _probe as probe

PUBLISHED = {"mobilenet_v2": (1000, 0.045, 1.5), "resnet18": (500, 0.1, 75.0)}
"""Steps between two measurements, smallest and largest step length (Wang et al., CVPR 2020, supplement A)."""


class LossLandscape(pl.Callback):
    """Logs the range of the loss and of the change of its gradient as the output of the first convolution is moved.

        landscape/loss_min, _max:      range over eta of  L(X + eta g(X))                         (A1)
        landscape/gradient_min, _max:  range over eta of  ||g(X) - g(X + eta g(X))||_2            (A2)

    with X ``(B, C, H, W)`` the output of the first convolution, L the loss of the training batch, g = dL/dX, and eta
    evenly spaced between the smallest and the largest step length. A1 is the Lipschitzness of the loss, A2 how well the
    gradient predicts the one a step ahead; a smooth landscape has narrow, low bands (Wang et al., CVPR 2020,
    supplement, sec. A, eq. (A1)-(A2), after Santurkar et al., NeurIPS 2018). The sign is that of the equations: the
    move goes uphill. "Uniformly sampled" is taken as evenly spaced, which needs no random numbers.

    It is evaluated before the step, at the training batch, and does not change the training: parameters, gradients,
    buffers, counters and random numbers stay as they are, bit by bit. It costs ``points + 1`` passes through the
    network. With several processes it is the range for the whole batch; a step length at which the network overflows
    makes the range NaN.

    The LightningModule must have a method ``loss(batch)``, which returns the mean loss and logs nothing, and a module
    ``backbone`` with a convolution.

    Args:
        every_n_steps: optimizer steps between two measurements; null: 1000 for MobileNetV2, 500 for all others.
        smallest: smallest step length; null: 0.045 for MobileNetV2, 0.1 (the paper's for ResNet-18) for all others.
        largest: largest step length; null: 1.5 for MobileNetV2, 75 (the paper's for ResNet-18) for all others.
        points: number of step lengths.

    Raises:
        ValueError: for numbers that are not positive or in the wrong order, and at the start for a model without
            the method or the convolution.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        smallest: float | None = None,
        largest: float | None = None,
        points: int = 50,
    ) -> None:
        if points < 1:
            raise ValueError(f"LossLandscape: points must be at least 1, got {points}")
        self.every_n_steps, self.smallest, self.largest, self.points = every_n_steps, smallest, largest, points
        self.layer = ""
        self._set_defaults("resnet18")

    def _set_defaults(self, backbone: str | None) -> None:
        self.period, smallest, largest = PUBLISHED.get(backbone or "", PUBLISHED["resnet18"])
        if self.every_n_steps is not None:
            self.period = self.every_n_steps
        if self.smallest is not None:
            smallest = self.smallest
        if self.largest is not None:
            largest = self.largest
        if not smallest <= largest:
            raise ValueError(f"LossLandscape: smallest {smallest} lies above largest {largest}")
        self.step_lengths = torch.linspace(smallest, largest, self.points, dtype=torch.float64).tolist()
        probe.check_steps("LossLandscape", self.period, self.step_lengths)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        backbone = getattr(pl_module, "backbone", None)
        first = _first_convolution(backbone) if isinstance(backbone, nn.Module) else None
        if first is None:
            raise ValueError("LossLandscape needs a model whose `backbone` holds a Conv2d, the first of which it moves")
        self.layer = f"backbone.{first}" if first else "backbone"
        self._set_defaults(pl_module.hparams.get("backbone"))
        probe.check_module("LossLandscape", pl_module, self.layer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not probe.is_due(trainer, batch_idx, self.period):
            return
        found = probe.along_gradient(trainer, pl_module, batch, self.layer, "output", self.step_lengths)
        probe.log(
            trainer,
            {
                "landscape/loss_min": found.losses.min(),
                "landscape/loss_max": found.losses.max(),
                "landscape/gradient_min": found.gradient_changes.min(),
                "landscape/gradient_max": found.gradient_changes.max(),
            },
        )


def _first_convolution(module: nn.Module) -> str | None:
    """The name of the first convolution inside a module, empty for the module itself."""
    return next((name for name, child in module.named_modules() if isinstance(child, nn.Conv2d)), None)

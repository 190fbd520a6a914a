"""The smoothness of the gradient at a layer: the effective beta-smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from . import _probe as probe


class GradientSmoothness(pl.Callback):
    """Logs the effective beta-smoothness of the loss at the input of a layer as ``smoothness/beta``.

        beta = max over eta of  ||g(X) - g(X + eta g(X))||_2 / ||eta g(X)||_2,      g = dL/dX

    X ``(B, C, H, W)`` is the input of the layer, L the loss of the training batch, and eta one of the step lengths: the
    largest change of the gradient per distance moved in its direction, a lower bound of the Lipschitz constant of the
    gradient near X. A smaller beta is a smoother gradient: the gradient holds for a longer step. This is the quantity
    of Song et al., ICCV 2021, fig. 2 and 4 (right), after Santurkar et al., NeurIPS 2018, sec. 3 and fig. 4 (c), who
    define it in words. The papers give no step lengths; the default spans the interval of Wang et al., CVPR 2020,
    supplement, sec. A, for ResNet-18. Compare values only at equal step lengths, batch size and backbone: the mean over
    a batch makes every gradient, and with it beta, smaller by the batch size, and if a ReLU follows X, its kinks make
    the quotient larger the shorter the step.

    By default X is the features of which the covariance is taken, after the 1x1 reduction of the pooling if there is
    one, so that beta is that of the meta-layer and the classifier. Rounding adds up to the precision of the network
    over eta: about 1e-7 / eta in float32, 1e-2 / eta in bf16.

    It is evaluated before the step, at the training batch, and does not change the training: parameters, gradients,
    buffers, counters and random numbers stay as they are, bit by bit. It costs one pass through the network for each
    step length and one more. With several processes it is the value of the whole batch.

    The LightningModule must have a method ``loss(batch)``, which returns the mean loss and logs nothing, and a module
    ``pooling`` unless ``layer`` is given.

    Args:
        every_n_steps: optimizer steps between two measurements.
        step_lengths: the multiples eta of the gradient.
        layer: name of the layer whose input is moved, such as backbone.bn1; null: the features of which the pooling
            takes the covariance or the average.

    Raises:
        ValueError: for numbers that are not positive, and at the start for a model without the layer or the method.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        step_lengths: Sequence[float] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 75.0),
        layer: str | None = None,
    ) -> None:
        probe.check_steps("GradientSmoothness", every_n_steps, step_lengths)
        self.every_n_steps, self.step_lengths, self.layer = every_n_steps, tuple(step_lengths), layer
        self._place: tuple[str, probe.Place] = ("pooling", "input")

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pooling = getattr(pl_module, "pooling", None)
        if self.layer is not None:
            self._place = (self.layer, "input")
        elif getattr(pooling, "reduction", None) is not None:
            self._place = ("pooling.reduction", "output")
        probe.check_module("GradientSmoothness", pl_module, self._place[0])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not probe.is_due(trainer, batch_idx, self.every_n_steps):
            return
        found = probe.along_gradient(trainer, pl_module, batch, *self._place, self.step_lengths)
        probe.log(trainer, {"smoothness/beta": (found.gradient_changes / found.distances).max()})

"""Optimal learning rate (OLR) of the pre-SVD layer."""

from __future__ import annotations

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from ._library import treatment_of
from ._pre_svd_treatment import PreSVDTreatment
from .nearest_orthogonal_gradient import NearestOrthogonalGradient


class OptimalLearningRate(PreSVDTreatment):
    """Steps the pre-SVD layer's weight with the learning rate that leaves it nearest to orthogonal (eq. 18-21).

    Song et al., ECCV 2022. See `optimal_learning_rate` for the formula and `PreSVDTreatment` for the parameter. If 0 <
    eta* < lr, the rate eta* replaces the scheduled one, lr, for this step, and the scheduled one is restored before the
    schedule reads it. The formula uses the weight and its gradient, after `NearestOrthogonalGradient` and before
    clipping; like the paper's, it ignores momentum and weight decay, which the optimizer then applies with that rate.

    In front of a normalisation (decorrelated batch norm, or the batch norm after the reduction of covariance pooling)
    the loss does not depend on the scale of W, so <l,w> is zero except for eps and round-off. With the plain gradient
    eta* is then close to zero or negative: OLR all but stops the layer at the steps in which it is positive. The
    orthogonal gradient of `NearestOrthogonalGradient` has no such property.

    The rate is a number on the host, so every step waits for the gradient of this one layer.

    Logs ``olr/learning_rate``, the rate that the step uses.

    The paper finds (sec. 5.2) that OLR does not work if only one of weight and gradient is orthogonal: eta* tends to
    zero. Such runs start with a warning.

    The LightningModule must have a property ``pre_svd_layer``, and give its weight a parameter group of its own: in
    `configure_optimizers`, or by a method ``give_own_parameter_group(parameter)``, which is called before that.

    Raises:
        ValueError: if the weight has no parameter group of its own, and as `PreSVDTreatment`.
    """

    training_setup: ClassVar[dict[str, str]] = {"OptimalLearningRate": "in use"}
    """Announced to the model: a run with this callback is not resumed without it, nor the other way round."""

    def __init__(self) -> None:
        self._group: dict[str, Any] = {}
        self._hooks: list[Any] = []
        self._rate: float | None = None  # eta* of this step, if it replaces the scheduled rate
        self._scheduled: Any = None
        self._stepping = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and hasattr(pl_module, "give_own_parameter_group"):
            pl_module.give_own_parameter_group(self.parameter(pl_module))  # type: ignore[operator]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        (optimizer,) = trainer.optimizers
        self._group = _own_group(optimizer, self.parameter(pl_module), type(pl_module).__name__)
        # Under a loss scaler the step may be skipped after the rate is known, so the rate is set within the step.
        # Without one the rate is found within the step: the gradient is computed there.
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._warn_if_half_orthogonal(trainer, pl_module)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        weight, self._rate = self.parameter(pl_module), None
        if weight.grad is None:
            return
        scheduled = float(self._group["lr"])
        rate = optimal_learning_rate(weight, weight.grad).item()
        if 0 < rate < scheduled:
            self._rate = rate
        pl_module.log("olr/learning_rate", self._rate or scheduled)
        if self._stepping:
            self._set_rate()

    def _before_step(self, *_: Any) -> None:
        self._stepping, self._scheduled = True, self._group["lr"]
        self._set_rate()

    def _set_rate(self) -> None:
        if self._rate is not None:
            self._group["lr"] = self._rate

    def _after_step(self, *_: Any) -> None:
        self._group["lr"] = self._scheduled
        self._stepping, self._rate = False, None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if self._stepping:  # so that a checkpoint that is saved as the run ends contains the scheduled rate
            self._after_step()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _warn_if_half_orthogonal(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        layer = self.layer(pl_module)
        assert layer is not None
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        weight = treatment_of(layer) == "orthogonal"
        gradient = any(isinstance(callback, NearestOrthogonalGradient) for callback in callbacks)
        if weight == gradient:
            return
        which, other = ("weight", "gradient") if weight else ("gradient", "weight")
        rank_zero_warn(
            f"OptimalLearningRate with an orthogonal {which} but not {other}: its rate then tends to zero "
            "(ECCV 2022, sec. 5.2); use both NearestOrthogonalGradient and weight_treatment orthogonal, or neither"
        )


def _own_group(optimizer: Optimizer, weight: nn.Parameter, model: str) -> dict[str, Any]:
    """The parameter group that holds this weight alone."""
    for group in optimizer.param_groups:
        if len(group["params"]) == 1 and group["params"][0] is weight:
            return group
    raise ValueError(
        f"OptimalLearningRate: {model} must give the pre-SVD layer's weight a parameter group of its own, in "
        "configure_optimizers or by a method give_own_parameter_group(parameter)"
    )


def optimal_learning_rate(W: Tensor, G: Tensor) -> Tensor:
    r"""``eta* = <w,w> <l,w> / (<w,w> <l,l> + 2 <l,w>^2)`` (Song et al., ECCV 2022, eq. 20).

    Meant to minimise ``||(W - eta G) (W - eta G)^T - I||_F`` (eq. 18), it is one step of Newton's method from eta = 0
    for ``((w - eta l)^T (w - eta l))^2``, with w and l the vectors of W and G: the derivative without its terms in
    eta^2 and eta^3, and without I (appendix A.2). So it is near the minimiser if I is small beside W W^T, products of
    matrices behave like those of their vectors (rank one), and W and G are far from parallel.

    As a function of ``<l,w>`` it is at most ``|w| / (sqrt(8) |l|)``, for any W and G. For orthogonal W and G of N rows,
    ``<w,w> = <l,l> = N``, and with ``1 <= <l,w> <= N``, as the proof of proposition 1 assumes, it lies between
    ``1 / (N^2 + 2)`` and ``N^2 / (N^2 + 2)``.

    Args:
        W: the weight, of any shape.
        G: its gradient, of the same shape.

    Returns:
        A number in float64; negative if W grows along the descent, NaN if W or G is zero or not finite.
    """
    w, g = W.flatten().double(), G.flatten().double()
    # Vectors of unit length, so that no product overflows.
    w_norm, g_norm = w.norm(), g.norm()
    cosine = (w / w_norm) @ (g / g_norm)
    return w_norm / g_norm * cosine / (1 + 2 * cosine.square())

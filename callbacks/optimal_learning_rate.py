"""Optimal learning rate (OLR) of the pre-SVD layer."""

from __future__ import annotations

from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from app.layers import treatment_of
from callbacks._pre_svd_treatment import PreSVDTreatment
from callbacks.nearest_orthogonal_gradient import NearestOrthogonalGradient


class OptimalLearningRate(PreSVDTreatment):
    """Steps the pre-SVD layer's weight with the learning rate that leaves it nearest to orthogonal (eq. 18-21).

    Song et al., ECCV 2022. See `optimal_learning_rate` for the formula and `PreSVDTreatment` for the parameter. The
    rate eta* takes the place of the scheduled one, lr, for the step at hand where 0 < eta* < lr, and the scheduled one
    is back before any schedule looks at it. The formula knows the weight and its gradient, after
    `NearestOrthogonalGradient` and before clipping; like the paper's it knows nothing of momentum and weight decay,
    which the optimizer applies with the rate found. The parameter has a group of its own in the optimizer.

    In front of a normalisation (decorrelated batch norm, or the batch norm behind the reduction of covariance pooling)
    the loss does not depend on the scale of W, so <l,w> is zero but for eps and round-off. With the plain gradient eta*
    is then next to zero or negative: OLR all but stops the layer at the steps where it is positive. The orthogonal
    gradient of `NearestOrthogonalGradient` has no such property.

    The rate is a number of the host, so every step waits for the gradient of this one layer.

    Logs ``olr/learning_rate``, the rate that the step is made with.

    The paper finds (sec. 5.2) that OLR cannot work with only one of weight and gradient orthogonal, where eta* tends to
    zero. Such runs start with a warning.

    Raises:
        ValueError: for a model that gives the weight no group of its own, and as `PreSVDTreatment`.
    """

    training_setup: ClassVar[dict[str, str]] = {"OptimalLearningRate": "in use"}
    """Its entry in `app.models.training_setup`: a run with it is not resumed without it."""

    def __init__(self) -> None:
        self._group: dict[str, Any] = {}
        self._hooks: list[Any] = []
        self._rate: float | None = None
        self._scheduled: Any = None
        self._stepping = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and hasattr(pl_module, "give_own_parameter_group"):
            pl_module.give_own_parameter_group(self.parameter(pl_module))  # type: ignore[operator]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        weight, (optimizer,) = self.parameter(pl_module), trainer.optimizers
        groups = [group for group in optimizer.param_groups if any(p is weight for p in group["params"])]
        if len(groups) != 1 or len(groups[0]["params"]) != 1:
            raise ValueError(
                "OptimalLearningRate: the optimizer must have a group for the pre-SVD layer's weight alone"
            )
        self._group = groups[0]
        # Under a loss scaler the step may be skipped after the rate is known, so the rate is set inside of the step.
        # Without one the rate is found inside of the step: the gradient is computed there.
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        layer = self.layer(pl_module)
        assert layer is not None
        orthogonal_weight = treatment_of(layer) == "orthogonal"
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if orthogonal_weight != any(isinstance(callback, NearestOrthogonalGradient) for callback in callbacks):
            which, other = ("weight", "gradient") if orthogonal_weight else ("gradient", "weight")
            rank_zero_warn(
                f"OptimalLearningRate with an orthogonal {which} but not {other}: its rate then tends to zero "
                "(ECCV 2022, sec. 5.2); use both NearestOrthogonalGradient and weight_treatment orthogonal, or neither"
            )

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        weight, self._rate = self.parameter(pl_module), None
        if weight.grad is None:
            return
        scheduled = float(self._group["lr"])
        rate = optimal_learning_rate(weight, weight.grad).item()
        self._rate = rate if 0 < rate < scheduled else None
        pl_module.log("olr/learning_rate", scheduled if self._rate is None else self._rate)
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
        if self._stepping:  # checkpoints written on the way out hold the schedule
            self._after_step()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def optimal_learning_rate(W: Tensor, G: Tensor) -> Tensor:
    r"""``eta* = <w,w> <l,w> / (<w,w> <l,l> + 2 <l,w>^2)`` (Song et al., ECCV 2022, eq. 20).

    Meant to minimise ``||(W - eta G) (W - eta G)^T - I||_F`` (eq. 18), it is one step of Newton's method from eta = 0
    for ``((w - eta l)^T (w - eta l))^2``, with w and l the vectors of W and G: the derivative without its terms in
    eta^2 and eta^3, and without I (appendix A.2). So it is near the minimiser where I is small beside W W^T, products
    of matrices behave as those of their vectors (rank one), and W and G are far from parallel.

    As a function of ``<l,w>`` it is at most ``|w| / (sqrt(8) |l|)``, for any W and G. For orthogonal W and G of N rows,
    ``<w,w> = <l,l> = N``, and with ``1 <= <l,w> <= N``, as the proof of proposition 1 takes it, it lies between
    ``1 / (N^2 + 2)`` and ``N^2 / (N^2 + 2)``.

    Args:
        W: the weight, of any shape.
        G: its gradient, of the same shape.

    Returns:
        A number in float64; negative where W grows along the descent, NaN where W or G is zero or not finite.
    """
    w, g = W.flatten().double(), G.flatten().double()
    # of unit length, so that no product overflows
    w_norm, g_norm = w.norm(), g.norm()
    cosine = (w / w_norm) @ (g / g_norm)
    return w_norm / g_norm * cosine / (1 + 2 * cosine.square())

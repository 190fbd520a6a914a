"""Orthogonal loss: soft orthogonality of the weight of the pre-SVD layer."""

from __future__ import annotations

from typing import ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from ._library import treatment_of
from ._pre_svd_treatment import PreSVDTreatment


class OrthogonalLoss(PreSVDTreatment):
    """Adds ``coefficient ||W W^T - I||_F`` to the objective (Song et al., ECCV 2022, eq. 12).

    W is the kernel of the pre-SVD layer as a matrix ``(C_out, C_in k k)``. With more rows than columns the norm cannot
    vanish; it is smallest if the columns are orthonormal. The gradient of the term is added to that of the loss once
    before every step of the optimizer, so that it is exact under accumulation, loss scaling and several processes;
    ``train/loss`` remains the loss of the classification. `NearestOrthogonalGradient` then takes the sum of both.

    Logs ``orthogonal_loss/value``, the norm without its coefficient.

    The LightningModule must have a property ``pre_svd_layer``, the module whose weight is regularised.

    Args:
        coefficient: weight of the term; the paper does not give its value.

    Raises:
        ValueError: for a coefficient that is not positive, if the weight already has another treatment, and as
            `PreSVDTreatment`.
    """

    before: ClassVar[tuple[str, ...]] = ("NearestOrthogonalGradient", "OptimalLearningRate")

    def __init__(self, coefficient: float = 0.1) -> None:
        if not 0 < coefficient < float("inf"):
            raise ValueError(f"coefficient of the orthogonal loss must be positive, got {coefficient}")
        self.coefficient = coefficient

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        layer = self.layer(pl_module)
        assert layer is not None
        treatment = treatment_of(layer)
        if treatment is not None:
            raise ValueError(
                f"OrthogonalLoss and weight_treatment {treatment} treat the same weight: choose one of them"
            )

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        weight = self.parameter(pl_module)
        value, gradient = orthogonal_loss(weight.flatten(1))
        if weight.grad is not None:
            weight.grad.add_(gradient.view_as(weight), alpha=self.coefficient)
        pl_module.log("orthogonal_loss/value", value)


def orthogonal_loss(W: Tensor) -> tuple[Tensor, Tensor]:
    """``||W W^T - I||_F`` of a matrix ``(m, n)`` and its gradient ``2 (W W^T - I) W / ||W W^T - I||_F``.

    At W W^T = I, a minimum without a derivative, the gradient is set to zero.
    """
    R = W @ W.mT
    R.diagonal().sub_(1)
    value = torch.linalg.matrix_norm(R)
    return value, (2 * R @ W) / torch.where(value > 0, value, 1)

"""Orthogonal loss: soft orthogonality of the weight of the pre-SVD layer."""

from __future__ import annotations

from typing import ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from app.layers import treatment_of
from callbacks._pre_svd_treatment import PreSVDTreatment


class OrthogonalLoss(PreSVDTreatment):
    """Adds ``coefficient ||W W^T - I||_F`` to the objective (Song et al., ECCV 2022, eq. 12).

    W is the kernel of the pre-SVD layer as a matrix ``(C_out, C_in k k)``. With more rows than columns the norm cannot
    vanish, and is smallest where the columns are orthonormal. The gradient of the term is added to that of the loss
    once before every step of the optimizer, so that it is exact under accumulation, loss scaling and several processes;
    ``train/loss`` stays the loss of the classification. `NearestOrthogonalGradient` then takes the sum of both.

    Logs ``orthogonal_loss/value``, the norm without its coefficient.

    Args:
        coefficient: weight of the term; the paper does not name its own.

    Raises:
        ValueError: for a coefficient that is not positive, for weights under a treatment already, and as
            `PreSVDTreatment`.
    """

    before: ClassVar[tuple[str, ...]] = ("NearestOrthogonalGradient", "OptimalLearningRate")

    def __init__(self, coefficient: float = 0.1) -> None:
        if not 0 < coefficient < float("inf"):
            raise ValueError(f"coefficient of the orthogonal loss must be positive, got {coefficient}")
        self.coefficient = coefficient

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        layer = self.layer(pl_module)
        if stage == "fit" and layer is not None and (treatment := treatment_of(layer)) is not None:
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

    The gradient is zero where W W^T = I, which is a minimum without a derivative.
    """
    R = W @ W.mT
    R.diagonal().sub_(1)
    value = torch.linalg.matrix_norm(R)
    return value, (2 * R @ W) / torch.where(value > 0, value, 1)

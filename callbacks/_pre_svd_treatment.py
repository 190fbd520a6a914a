"""What the treatments of the pre-SVD layer have in common: which parameter they act on, when, and when not."""

from __future__ import annotations

from typing import ClassVar

import pytorch_lightning as pl
from torch import nn

from app.layers import original_weight


class PreSVDTreatment(pl.Callback):
    """Acts on the weight of the convolution that feeds the covariance, before each step of the optimizer.

    At that time the gradient is complete: accumulated, summed over the processes and unscaled. Clipping comes after
    (Lightning calls it behind this hook). Under a weight treatment the parameter is the one that the optimizer steps,
    W of ``exp(W - W^T)`` or of ``W / sigma(W)``: the papers' update ``W - eta dl/dW`` is of that one.

    Attributes:
        before: names of the treatments that must come later in the list of callbacks.

    Raises:
        ValueError: before the first batch, for a model without a pre-SVD layer, a callback given twice, a wrong order
            of callbacks, and an optimizer that keeps its gradients scaled (fused, with 16-mixed).
    """

    before: ClassVar[tuple[str, ...]] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.layer(pl_module) is None:
            raise ValueError(
                f"{type(self).__name__} has no layer to act on: this model takes no covariance (meta_layer gap without "
                "decorrelation)"
            )
        names = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
        if names.count(type(self).__name__) > 1:
            raise ValueError(f"{type(self).__name__} is in trainer.callbacks twice: give it once")
        position = names.index(type(self).__name__)
        for other in self.before:
            if other in names[:position]:
                raise ValueError(f"{type(self).__name__} must come before {other} in trainer.callbacks")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for optimizer in trainer.optimizers:
            if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
                raise ValueError(
                    f"{type(self).__name__} with precision 16-mixed needs unscaled gradients, and a fused "
                    f"{type(optimizer).__name__} unscales them later: leave out fused, or use bf16-mixed"
                )

    def layer(self, pl_module: pl.LightningModule) -> nn.Module | None:
        """The pre-SVD layer."""
        return getattr(pl_module, "pre_svd_layer", None)  # type: ignore[return-value]

    def parameter(self, pl_module: pl.LightningModule) -> nn.Parameter:
        """The parameter of its weight."""
        layer = self.layer(pl_module)
        assert layer is not None
        return original_weight(layer)

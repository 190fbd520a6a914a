"""The base class of treatments of the pre-SVD layer: the parameter they act on, and checks before training."""

from __future__ import annotations

from typing import ClassVar

import pytorch_lightning as pl
from torch import nn

from ._library import original_weight


class PreSVDTreatment(pl.Callback):
    """Acts on the weight of the convolution that feeds the covariance, before each step of the optimizer.

    At that time the gradient is complete: accumulated, summed over the processes and unscaled. Lightning clips it after
    this hook. Under a weight treatment the parameter is the one that the optimizer steps, W of ``exp(W - W^T)`` or of
    ``W / sigma(W)``: this is the W of the papers' update ``W - eta dl/dW``.

    The LightningModule must have a property ``pre_svd_layer``, the module whose weight is treated.

    Attributes:
        before: names of the treatments that must come later in the list of callbacks.

    Raises:
        ValueError: before the first batch, for a model without a pre-SVD layer, a callback given twice, a wrong order
            of callbacks, and an optimizer that keeps its gradients scaled (fused, with 16-mixed).
    """

    before: ClassVar[tuple[str, ...]] = ()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._check_model(pl_module)
            self._check_order([type(callback).__name__ for callback in trainer.callbacks])  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            return
        for optimizer in trainer.optimizers:
            # The attribute by which torch's GradScaler recognises an optimizer that unscales within its step.
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                raise ValueError(
                    f"{type(self).__name__} with precision 16-mixed needs unscaled gradients, and a fused "
                    f"{type(optimizer).__name__} unscales them later: leave out fused, or use bf16-mixed"
                )

    def layer(self, pl_module: pl.LightningModule) -> nn.Module | None:
        """The pre-SVD layer."""
        return getattr(pl_module, "pre_svd_layer", None)

    def parameter(self, pl_module: pl.LightningModule) -> nn.Parameter:
        """The parameter of its weight."""
        layer = self.layer(pl_module)
        assert layer is not None
        return original_weight(layer)

    def _check_model(self, pl_module: pl.LightningModule) -> None:
        name = type(self).__name__
        if not hasattr(pl_module, "pre_svd_layer"):
            raise ValueError(
                f"{name} has no layer to act on: {type(pl_module).__name__} has no property pre_svd_layer, the "
                "convolution that feeds the covariance"
            )
        if self.layer(pl_module) is None:
            raise ValueError(
                f"{name} has no layer to act on: this model takes no covariance (meta_layer gap without decorrelation)"
            )

    def _check_order(self, names: list[str]) -> None:
        name = type(self).__name__
        if names.count(name) > 1:
            raise ValueError(f"{name} is in trainer.callbacks twice: give it once")
        earlier = names[: names.index(name)]
        for other in self.before:
            if other in earlier:
                raise ValueError(f"{name} must come before {other} in trainer.callbacks")

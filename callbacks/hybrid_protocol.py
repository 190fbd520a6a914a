"""The hybrid training protocol: Newton-Schulz first, then an SVD layer from shortly before the last decay."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from ._last_decay import last_decay

NEWTON_SCHULZ, WARM_UP, SVD = range(3)
STAGES = ("Newton-Schulz", "warm-up", "SVD")

Layer = tuple[Any, dict[str, Any]]
"""A meta-layer, by its name or as an object, and its options."""


class HybridProtocol(pl.Callback):
    """Trains with the model's own meta-layer, and with an SVD layer from shortly before the last learning-rate decay.

    Stage 0: the model's ``meta_layer`` (Newton-Schulz in the paper). Stage 1: ``warmup_epochs`` with the SVD layer at
    the old rate. Stage 2: from the last decay to the end with the SVD layer. The covariance is better conditioned late
    in training, where the accurate square root pays (Song et al., ICCV 2021, sec. 3.4, appendix D and table 11).

    The switch is made at the start of an epoch, so a checkpoint names the layer with which its weights were trained.
    A resumed run continues in its stage. A switch that has been made remains, with its layer and epochs, even if the
    run is resumed with other ``max_epochs`` or options; one that has not been made is planned again, and is made at
    once if its epoch is past. ``fast_dev_run`` stays in stage 0. Validate, test and predict use the model as it is.

    Logs ``hybrid/stage`` (0, 1 or 2) when a stage begins and at the end of each epoch.

    The LightningModule must have a method ``use_meta_layer(name, options)`` and a module ``pooling`` with attributes
    ``meta_layer`` and ``meta_options``.

    Args:
        svd_layer: meta-layer after the switch; any of the model's that pools to the same shape.
        svd_options: its options, such as {pade_degree: 50}.
        warmup_epochs: epochs with it before the last decay; the paper uses 1 for AlexNet and 2 for ResNet.
        switch_epoch: first epoch with it, counted from 0; null: ``warmup_epochs`` before the last decay. Stage 2
            begins at the last decay, or ``warmup_epochs`` after the switch if no decay comes after it.

    Raises:
        ValueError: before the first batch: for a model without that meta-layer or with wrong options of it, for a
            schedule without a last decay within ``max_epochs`` (`last_decay`), for a warm-up longer than the stage
            before that decay, and for a ``switch_epoch`` that the run does not reach.
    """

    def __init__(
        self,
        svd_layer: str = "svd-pade",
        svd_options: dict[str, Any] | None = None,
        warmup_epochs: int = 1,
        switch_epoch: int | None = None,
    ) -> None:
        if warmup_epochs < 0:
            raise ValueError(f"HybridProtocol: warmup_epochs must not be negative, got {warmup_epochs}")
        if switch_epoch is not None and switch_epoch < 0:
            raise ValueError(f"HybridProtocol: switch_epoch must not be negative, got {switch_epoch}")
        self.svd: Layer = (svd_layer, dict(svd_options or {}))
        self.warmup_epochs, self.switch_epoch = warmup_epochs, switch_epoch
        self.first: Layer | None = None  # of stage 0
        self.stage: int | None = None
        self._switch = self._decay = 0  # the first epochs of stage 1 and stage 2
        self._announced: int | None = None  # the stage that was last printed

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The state of an earlier run counts only if that run is resumed.
        if trainer.ckpt_path is None and trainer.current_epoch == 0:
            self.first = self.stage = None
        self._announced = None
        here = _layer(pl_module)
        # A resumed run may be built with either of its layers. A third one is what the user asks for now.
        if self.first is None or (not self.stage and here not in (self.first, self.svd)):
            self.first = here
        self._try_svd_layer(pl_module, here)
        if not self.stage:
            self._switch, self._decay = self._plan(trainer)
        if self.first == self.svd:
            rank_zero_warn(f"HybridProtocol: the model already starts with {self.svd[0]}, nothing will be switched")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.stage:
            self._switch = max(self._switch, trainer.current_epoch)
            self._decay = max(self._switch, self._decay)
        self._enter_epoch(trainer, pl_module)  # a run resumed mid-epoch does not start that epoch again

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._enter_epoch(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("hybrid/stage", float(self.stage or 0), on_epoch=True, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        if self.stage is None or self.first is None:
            return {}
        name, options = self.first
        return {
            "stage": self.stage,
            "switch_epoch": self._switch,
            "decay_epoch": self._decay,
            # Checkpoints hold plain types. A layer that is an object comes from the model again.
            "first_layer": name if isinstance(name, str) else None,
            "first_options": options,
            "svd_layer": self.svd[0],
            "svd_options": self.svd[1],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stage = state_dict["stage"]
        self._switch, self._decay = state_dict["switch_epoch"], state_dict["decay_epoch"]
        if state_dict["first_layer"] is not None:
            self.first = (state_dict["first_layer"], state_dict["first_options"])
        stored = (state_dict["svd_layer"], state_dict["svd_options"])
        if self.stage and stored != self.svd:
            rank_zero_info(f"HybridProtocol: the run has already switched to {stored[0]}, and keeps it")
            self.svd = stored

    def _plan(self, trainer: pl.Trainer) -> tuple[int, int]:
        """The first epoch with the SVD layer, and the first after the last decay."""
        epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return epochs, epochs
        if self.switch_epoch is not None:
            return self._plan_by_hand(trainer, self.switch_epoch, epochs)
        try:
            start, decay = last_decay(trainer)
        except ValueError as error:
            raise ValueError(f"HybridProtocol: {error}") from error
        if decay - self.warmup_epochs < start:
            raise ValueError(
                f"HybridProtocol: warmup_epochs {self.warmup_epochs} is longer than the stage before the last decay, "
                f"epochs {start} to {decay - 1}: give at most {decay - start}, or switch_epoch"
            )
        return decay - self.warmup_epochs, decay

    def _plan_by_hand(self, trainer: pl.Trainer, switch: int, epochs: int) -> tuple[int, int]:
        if 0 <= epochs <= switch:
            raise ValueError(f"HybridProtocol: switch_epoch {switch} is not reached, the epochs are 0 to {epochs - 1}")
        try:
            decay = last_decay(trainer)[1]
        except ValueError:  # this schedule has no last decay, and needs none
            decay = -1
        if decay < switch:
            decay = switch + self.warmup_epochs
        return switch, decay

    def _try_svd_layer(self, model: Any, here: Layer) -> None:
        """Switch to the SVD layer and back, so that a mistake in it is reported before the first batch."""
        try:
            _use(model, self.svd)
        except ValueError as error:
            raise ValueError(f"HybridProtocol: svd_layer {self.svd[0]} cannot be switched to: {error}") from error
        _use(model, here)

    def _enter_epoch(self, trainer: pl.Trainer, model: Any) -> None:
        assert self.first is not None
        self.stage = self._stage_of(trainer.current_epoch)
        layer = self.first if self.stage == NEWTON_SCHULZ else self.svd
        _use(model, layer)
        if self.stage != self._announced:
            self._announced = self.stage
            self._announce(trainer, self.stage, layer[0])

    def _stage_of(self, epoch: int) -> int:
        if epoch < self._switch:
            return NEWTON_SCHULZ
        if epoch < self._decay:
            return WARM_UP
        return SVD

    def _announce(self, trainer: pl.Trainer, stage: int, layer: str) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"hybrid/stage": float(stage)}, step=trainer.global_step)
        message = f"hybrid protocol, epoch {trainer.current_epoch}: stage {stage} ({STAGES[stage]}) with {layer}"
        if stage == NEWTON_SCHULZ:
            message += f"; {self.svd[0]} from epoch {self._switch} on"
        rank_zero_info(message)


def _layer(model: Any) -> Layer:
    if not hasattr(model, "use_meta_layer"):
        raise ValueError(
            f"HybridProtocol: {type(model).__name__} has no meta-layer that could be switched, "
            "by a method use_meta_layer(name, options)"
        )
    return model.pooling.meta_layer, dict(model.pooling.meta_options)


def _use(model: Any, layer: Layer) -> None:
    if layer != _layer(model):
        name, options = layer
        model.use_meta_layer(name, options or None)

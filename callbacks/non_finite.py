"""The policy for training steps with a non-finite loss or gradient: stop the run, or skip the step."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from ._accumulation import awaits_more_batches
from ._diagnosis import diagnose, first_non_finite, gradients
from ._layer_messages import LayerMessages
from ._reports import reports_of_ranks


class NonFinitePolicy(pl.Callback):
    """Stops the run, or skips the step and counts it, if the loss or the gradient is not finite.

    The message names the step, the process and the cause: the batch, a weight, or the first layer of the forward pass
    with a non-finite output; if the loss is finite, the last layer with a non-finite gradient, which the backward pass
    reaches first. Spectral layers return NaN instead of raising, so that all processes come to the same decision.

    - ``stop`` checks where it costs nothing: in steps that are logged (``log_every_n_steps``), in those in which a
      spectral layer met non-finite values, and with several processes in all, as Lightning waits for the device in each
      of them then. With average pooling in one process, it may notice some steps late, from a non-finite weight.
    - ``skip`` checks every step. A skipped step leaves parameters, optimizer and buffers (the statistics of batch norm)
      as they were, on all processes; it counts as a step of the schedule and in ``train/top1``.
      ``non_finite/skipped_steps`` is logged for each epoch, a total that checkpoints keep. One bad batch of an
      accumulated gradient spoils the whole step.

    With precision 16-mixed, gradients overflow routinely and the loss scale is adapted to it, so only the loss is
    checked.

    Works with every LightningModule; to name a layer it needs a method ``loss(batch)``. `FiniteEvaluation` and
    `FiniteCheckpoints` do the same for validation and checkpoints.

    Args:
        policy: stop or skip.
        patience: with skip, the run stops after this many bad steps in a row.

    Raises:
        FloatingPointError: when the run is stopped, on all processes.
        ValueError: for a wrong policy or patience.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop", patience: int = 10) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f"non_finite.policy must be stop or skip, got {policy}")
        if patience < 1:
            raise ValueError(f"non_finite.patience must be at least 1, got {patience}")
        self.policy, self.patience = policy, patience
        self.skipped = 0
        self._in_a_row = 0
        self._messages = LayerMessages()
        self._batch: Any = None
        self._loss = torch.zeros(())  # the sum over all batches of the step
        self._buffers: list[tuple[Tensor, Tensor]] = []  # and their values before the step

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is None and trainer.current_epoch == 0:
            self.skipped = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        self._messages.collect(pl_module)
        if batch_idx % trainer.accumulate_grad_batches:
            return
        self._messages.clear()
        self._loss = torch.zeros(())
        if self.policy == "skip":
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = self._loss + loss.detach()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if awaits_more_batches(trainer) or not self._is_checked(trainer):
            return
        bad = not self._loss.isfinite() or self._gradient_is_bad(trainer, pl_module)
        if not trainer.strategy.reduce_boolean_decision(bad, all=False):
            self._in_a_row = 0
            return
        self._in_a_row += 1
        message = self._describe(trainer, pl_module, self._loss)
        if self.policy == "stop":
            raise FloatingPointError(f"{message} (non_finite.policy skip skips such steps)")
        if self._in_a_row >= self.patience:
            raise FloatingPointError(f"{message}; that is {self._in_a_row} steps in a row (non_finite.patience)")
        self.skipped += 1
        rank_zero_warn(f"skipped, {self.skipped} steps so far: {message}")
        _discard_gradient(trainer, pl_module)
        for buffer, value in self._buffers:
            buffer.copy_(value)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._batch = None
        self._messages.stop(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.policy == "skip":
            pl_module.log("non_finite/skipped_steps", float(self.skipped), on_epoch=True, sync_dist=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._messages.stop(pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _is_checked(self, trainer: pl.Trainer) -> bool:
        """Whether loss and gradient of this step are checked; the same on every process."""
        if self.policy == "skip" or trainer.world_size > 1 or self._messages.first is not None:
            return True
        every_n_steps: int = trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        return (trainer.global_step + 1) % every_n_steps == 0

    def _gradient_is_bad(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        if _loss_is_scaled(trainer):
            return False
        return first_non_finite(gradients(pl_module)) is not None

    def _describe(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> str:
        """The step, the processes with non-finite values, and the cause; the same on every process."""
        with trainer.precision_plugin.forward_context():
            cause = diagnose(pl_module, self._batch)
        report = None
        if not loss.isfinite():
            elsewhere = "in one of the accumulated batches"
            if trainer.accumulate_grad_batches == 1:
                elsewhere = "in the loss itself"
            report = f"train/loss is {loss.item()}: {cause or elsewhere}"
        reports = reports_of_ranks(trainer, report)
        if not reports:
            # Gradients are summed over the processes. The backward pass reaches the last layer first.
            last = first_non_finite(reversed(gradients(pl_module)))
            reports = [f"every rank, the gradient is not finite: first in the backward pass in {last}"]
        return f"step {trainer.global_step}: {'; '.join(reports)}"


def _discard_gradient(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Have the optimizer skip the step. A loss scaler skips steps with NaN by itself, and learns from them."""
    for parameter in pl_module.parameters():
        if not _loss_is_scaled(trainer):
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.fill_(torch.nan)


def _loss_is_scaled(trainer: pl.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None

"""What happens when the loss or a gradient is not finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from app.layers.spectral_layer import SpectralLayer
from callbacks._probe import untouched


class NonFinitePolicy(pl.Callback):
    """Stops the run, or leaves out the step and counts it, when the loss or the gradient is not finite.

    The message names the step, the process and the layer: the first layer of the forward pass whose output is not
    finite, or, where the loss is finite, the last one whose gradient is not (the backward pass comes through it first).
    Spectral layers let pass what they would refuse, so that all processes decide alike, and together.

    - ``stop`` looks where it costs nothing: in steps that are logged (``log_every_n_steps``), in those that a spectral
      layer would refuse, and with several processes in all, as Lightning waits for the device in each of them then.
      Average pooling in one process may so be found out some steps late, by a weight that is not finite.
    - ``skip`` looks in every step. A bad step leaves parameters, optimizer and buffers (the statistics of batch norm)
      as they were, on all processes; it counts as a step of the schedule and in ``train/top1``.
      ``non_finite/skipped_steps`` is logged for each epoch, a total that checkpoints keep. Of accumulated batches one
      bad one spoils the whole step.

    In validation and test either stops the run at their end. Weights and statistics that are not finite are never
    saved.

    With precision 16-mixed gradients overflow as a matter of course and the loss scale answers it: there only the loss
    is looked at.

    Args:
        policy: stop or skip.
        patience: with skip, the run stops at this many bad steps in a row.

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
        self.skipped, self._in_a_row = 0, 0
        self._layers: list[SpectralLayer] = []
        self._refusals: dict[str, str | None] = {}
        self._batch: Any = None
        self._loss: Tensor | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._layers = [module for module in pl_module.modules() if isinstance(module, SpectralLayer)]
        for layer in self._layers:
            layer.refuses_non_finite = stage == "predict"

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for layer in self._layers:
            layer.refuses_non_finite = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is None and trainer.current_epoch == 0:
            self.skipped = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if first:
            self._refusals["train"] = self._loss = None
        if self.policy == "skip" and first:
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()  # of all accumulated batches
        self._note_refusal("train")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop._should_accumulate() or self._loss is None:
            return
        logged = (trainer.global_step + 1) % (trainer.log_every_n_steps or 1) == 0
        if self.policy == "stop" and trainer.world_size == 1 and not logged and not self._refusals["train"]:
            return
        bad = not self._loss.isfinite() or not (_is_scaled(trainer) or _first_not_finite(_gradients(pl_module)) is None)
        if not trainer.strategy.reduce_boolean_decision(bad, all=False):
            self._in_a_row = 0
            return
        message = self._describe(trainer, pl_module)
        self._in_a_row += 1
        if self.policy == "stop":
            raise FloatingPointError(f"{message} (non_finite.policy skip leaves such steps out)")
        if self._in_a_row >= self.patience:
            raise FloatingPointError(f"{message}; that is {self._in_a_row} steps in a row (non_finite.patience)")
        self.skipped += 1
        rank_zero_warn(f"left out, {self.skipped} steps so far: {message}")
        _leave_out(trainer, pl_module)
        for buffer, value in self._buffers:
            buffer.copy_(value)

    def on_train_batch_end(self, *_: Any) -> None:
        self._batch = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.policy == "skip":
            pl_module.log("non_finite/skipped_steps", float(self.skipped), on_epoch=True, sync_dist=True)

    def on_validation_start(self, *_: Any) -> None:
        self._refusals["val"] = None

    def on_validation_batch_end(self, *_: Any) -> None:
        self._note_refusal("val")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_evaluation(trainer, pl_module, "val")

    def on_test_start(self, *_: Any) -> None:
        self._refusals["test"] = None

    def on_test_batch_end(self, *_: Any) -> None:
        self._note_refusal("test")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_evaluation(trainer, pl_module, "test")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        lost = _lost_weight(pl_module)  # the same on every process; statistics are those of each
        bad = None if lost else _first_not_finite(pl_module.named_buffers())
        if lost is None and trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            lost = (
                f"the statistics {bad or 'of another process'} are not finite: look at the images and the learning rate"
            )
        if lost:
            raise FloatingPointError(f"step {trainer.global_step}: {lost}; the checkpoint from before is kept")

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _note_refusal(self, stage: str) -> None:
        refusals = [layer.refusal for layer in self._layers if layer.refusal]
        self._refusals[stage] = self._refusals[stage] or next(iter(refusals), None)

    def _check_evaluation(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop at the end of an evaluation, before its checkpoint, which all processes come to together."""
        loss = trainer.callback_metrics.get(f"{stage}/loss", torch.zeros(()))  # the sanity check has none
        refusal = self._refusals[stage]
        if trainer.strategy.reduce_boolean_decision(refusal is not None or not loss.isfinite(), all=False):
            reasons = _of_all_ranks(trainer, _lost_weight(pl_module) or refusal or "")
            raise FloatingPointError(
                f"{stage}/loss is {loss.item()} after step {trainer.global_step}: "
                f"{'; '.join(reasons) or 'look at the images and the learning rate'}"
            )

    def _describe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """What is not finite, where and in which process; the same on every process."""
        assert self._loss is not None
        place = _first_layer(trainer, pl_module, self._batch)  # every process: layers may communicate
        what = f"train/loss is {self._loss.item()}" if not self._loss.isfinite() else "the gradient is not finite"
        lines = _of_all_ranks(trainer, "" if self._loss.isfinite() else f"{what}: {place}")
        if not lines:
            # the backward pass comes to the last layer first
            last = _first_not_finite(reversed(_gradients(pl_module)))
            lines = [f"every rank, {what}: first in the backward pass in {last}"]
        return f"step {trainer.global_step}: {'; '.join(lines)}"


def _of_all_ranks(trainer: pl.Trainer, text: str) -> list[str]:
    """What each process has to say, but for those that say nothing; the same on every process."""
    said = [trainer.strategy.broadcast(text, src=rank) for rank in range(trainer.world_size)]
    return [f"rank {rank} of {trainer.world_size}, {text}" for rank, text in enumerate(said) if text]


def _leave_out(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Take away the gradient; a loss scale leaves the step out by itself, and wants to see why."""
    for parameter in pl_module.parameters():
        if not _is_scaled(trainer):
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.fill_(torch.nan)


def _is_scaled(trainer: pl.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _gradients(pl_module: pl.LightningModule) -> list[tuple[str, Tensor]]:
    return [(name, parameter.grad) for name, parameter in pl_module.named_parameters() if parameter.grad is not None]


def _first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds a number that is not finite."""
    floating = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
    # one number to wait for; the largest entry cannot overflow
    if not floating or get_total_norm(floating.values(), norm_type=torch.inf).isfinite():
        return None
    return next(name for name, tensor in floating.items() if not tensor.isfinite().all())


def _lost_weight(pl_module: pl.LightningModule) -> str | None:
    name = _first_not_finite(pl_module.named_parameters())
    return name and f"the weight {name} is not finite, an earlier update diverged: lower the learning rate"


def _first_layer(trainer: pl.Trainer, pl_module: Any, batch: Any) -> str:
    """Where the forward pass of a batch is not finite for the first time."""
    found: list[str] = []

    def look(name: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(getattr(module, "refusal", None) or f"first not finite after {name}")

        return hook

    handles = [module.register_forward_hook(look(name, module)) for name, module in pl_module.named_modules() if name]
    try:  # whatever else is known: on every process, as layers may communicate
        with untouched(pl_module), torch.no_grad(), trainer.precision_plugin.forward_context():
            pl_module.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not batch[0].isfinite().all():
        return "the images are not finite"
    if lost := _lost_weight(pl_module):
        return lost
    if found:
        return f"{found[0]}: lower the learning rate"
    return "in the loss itself" if trainer.accumulate_grad_batches == 1 else "in one of the accumulated batches"

"""What happens when the loss or a gradient is not finite."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


class NonFinitePolicy(pl.Callback):
    """Stops the run, or leaves out the step and counts it, when the loss or the gradient is not finite.

    The message names the step, the process and the layer: the first layer of the forward pass whose output is not
    finite, or, where the loss is finite, the last one whose gradient is not (the backward pass comes through it first).
    All processes decide alike, and together.

    - ``stop`` looks in the steps that are logged (``log_every_n_steps``) and costs one small sum over the processes
      there; a layer that refuses features that are not finite stops the run in any step.
    - ``skip`` looks in every step, which waits for the device and sums over the processes in every step. A bad step
      leaves parameters, optimizer and buffers (the statistics of batch norm) as they were, on all processes; it counts
      as a step of the schedule. ``non_finite/skipped_steps`` is logged for each epoch, a total that checkpoints keep.
      Of accumulated batches one bad one spoils the whole step.

    With precision 16-mixed gradients overflow as a matter of course and the loss scale answers it: there only the loss
    is looked at.

    Args:
        policy: stop or skip.
        patience: with skip, the run stops at this many bad steps in a row.

    Raises:
        FloatingPointError: when the run is stopped.
        ValueError: for a wrong policy, and skip with a module that cannot (`Classifier` can).
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop", patience: int = 10) -> None:
        if policy not in ("stop", "skip"):
            raise ValueError(f"non_finite.policy must be stop or skip, got {policy}")
        if patience < 1:
            raise ValueError(f"non_finite.patience must be at least 1, got {patience}")
        self.policy, self.patience = policy, patience
        self.skipped, self._in_a_row = 0, 0
        self._batch: Any = None
        self._loss: Tensor | None = None
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not hasattr(pl_module, "non_finite"):
            if self.policy == "skip":
                raise ValueError(f"non_finite.policy skip: {type(pl_module).__name__} cannot leave out steps")
            return
        pl_module.non_finite = self.policy
        if trainer.ckpt_path is None and trainer.current_epoch == 0:
            self.skipped = 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch
        first = batch_idx % trainer.accumulate_grad_batches == 0
        if self.policy == "skip" and first:
            self._buffers = [(buffer, buffer.clone()) for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loop = trainer.fit_loop
        if loop._should_accumulate() or self._loss is None:
            return
        logged = loop.epoch_loop.batch_idx % (trainer.log_every_n_steps or 1) == 0
        if self.policy == "stop" and not logged:
            return
        bad = not self._loss.isfinite() or not (_is_scaled(trainer) or _has_finite_gradient(pl_module))
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
        for parameter in pl_module.parameters():
            parameter.grad = None
        for buffer, value in self._buffers:
            buffer.copy_(value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.policy == "skip":
            pl_module.log("non_finite/skipped_steps", float(self.skipped), on_epoch=True, sync_dist=True)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def _describe(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        """What is not finite, where and in which process; the same on every process."""
        assert self._loss is not None
        place = _first_layer(trainer, pl_module, self._batch)  # every process: layers may communicate
        what = f"train/loss is {self._loss.item()}" if not self._loss.isfinite() else "the gradient is not finite"
        blame = "" if self._loss.isfinite() else place
        found = [""] * trainer.world_size
        for rank in range(trainer.world_size):
            found[rank] = trainer.strategy.broadcast(f"{what}: {blame}" if blame else "", src=rank)
        step, processes = f"step {trainer.global_step}", f"of {trainer.world_size}"
        if lines := [f"rank {rank} {processes}, {text}" for rank, text in enumerate(found) if text]:
            return f"{step}: {'; '.join(lines)}"
        return f"{step}: every rank, {what}: first in the backward pass in {_last_gradient(pl_module)}"


def _is_scaled(trainer: pl.Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _has_finite_gradient(pl_module: pl.LightningModule) -> bool:
    gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
    return bool(get_total_norm(gradients, norm_type=torch.inf).isfinite())  # the largest entry cannot overflow


def _last_gradient(pl_module: pl.LightningModule) -> str:
    bad = [name for name, p in pl_module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return bad[-1]


def _first_layer(trainer: pl.Trainer, pl_module: Any, batch: Any) -> str:
    """Where the forward pass of a batch is not finite for the first time."""
    if not batch[0].isfinite().all():
        return "the images are not finite"
    for name, parameter in pl_module.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name} is not finite, an earlier update diverged: lower the learning rate"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in pl_module.named_modules() if name]
    try:
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            pl_module.loss(batch)
    except FloatingPointError as error:  # a layer that names itself
        if not found:
            return str(error)
    finally:
        for handle in handles:
            handle.remove()
    return f"first not finite after {found[0]}: lower the learning rate" if found else "in the loss itself"

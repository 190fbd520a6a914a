"""Loss and gradient of one training batch at an activation that is moved along its own gradient.

Shared by `GradientSmoothness` and `LossLandscape`. Symbols: X an activation inside the network, L the loss of the batch
of all processes, g = dL/dX at X, eta a step length, S step lengths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor, nn

from ._loss import has_loss, loss_of
from ._untouched import untouched

Place = Literal["input", "output"]


@dataclass
class AlongGradient:
    """The measurements at ``X + eta g`` for S step lengths: float64 tensors ``(S,)``, the same on every process.

    Attributes:
        losses: ``L(X + eta g)``.
        gradient_changes: ``||g(X) - g(X + eta g)||_2`` over the whole batch.
        distances: ``||eta g||_2``, as the dtype of the activation represents the move.
    """

    losses: Tensor
    gradient_changes: Tensor
    distances: Tensor


def along_gradient(
    trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, layer: str, place: Place, lengths: Sequence[float]
) -> AlongGradient:
    """Evaluate the loss and its gradient with respect to X at ``X + eta g`` for every step length eta.

    The network runs exactly as `training_step` will run it next: in training mode, with batch statistics in batch norm,
    the same dropout masks at every step length, and the trainer's precision (an activation of lower precision is moved
    in float32, where a small step is not rounded away). It leaves no trace: see `untouched`. A step length at which the
    network overflows gives NaN.

    Every process moves its own share of the batch, weighted by its size, so that X, g and the norms are those of the
    whole batch, whatever the number of processes (except in batch norm, whose statistics are those of the share, as in
    training). The processes add up once before and once after; no gradient of a parameter is computed.

    Args:
        trainer: the trainer, during `fit`.
        pl_module: a module with ``loss(batch)``, the mean over the batch.
        batch: a training batch on the device.
        layer: name of the module that X is an input or output of.
        place: which of the two.
        lengths: the step lengths.

    Raises:
        ValueError: for a layer that the forward pass does not use.
    """
    weight, scale = _share(trainer, pl_module, batch), _scale(trainer)
    module = pl_module.get_submodule(layer)

    def evaluate(moved: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, its gradient, and the X at which they were taken; without ``moved`` that of the network."""
        with untouched(pl_module), trainer.precision_plugin.forward_context(), torch.no_grad():
            if hasattr(pl_module, "seed_step"):
                # Draw the numbers of the coming step.
                pl_module.seed_step(trainer.fit_loop.epoch_loop.batch_idx)  # type: ignore[operator]
            X, loss = _loss_from(pl_module, batch, module, place, moved)
            if X is None:
                raise ValueError(f"the network does not use its layer {layer}: choose another one")
            (gradient,) = torch.autograd.grad(loss * (weight * scale), X)
            return loss.detach() * weight, gradient / scale, X.detach()

    _, g, X = evaluate(None)
    results = []
    for eta in lengths:
        moved = X + eta * g
        loss, gradient, _ = evaluate(moved)
        results.append(torch.stack([loss.double(), _square(g - gradient), _square(moved - X)]))
    losses, changes, distances = trainer.strategy.reduce(torch.stack(results, 1), reduce_op="sum")
    return AlongGradient(losses, changes.sqrt(), distances.sqrt())


def _loss_from(
    pl_module: pl.LightningModule, batch: Any, module: nn.Module, place: Place, moved: Tensor | None
) -> tuple[Tensor | None, Tensor]:
    """X as a leaf and the loss as a function of it; the part of the network before X keeps nothing for a gradient."""
    leaf: Tensor | None = None

    def replace(value: Any) -> Tensor:
        nonlocal leaf
        if not isinstance(value, Tensor):
            raise ValueError(f"the {place} of {type(module).__name__} is not a tensor: choose another layer")
        X = value if moved is None else moved
        leaf = X.detach().to(torch.promote_types(X.dtype, torch.float32)).requires_grad_()
        torch.set_grad_enabled(True)  # from here on; the no_grad of the caller ends it
        return leaf.clone()  # an activation may work in place, which a leaf does not allow

    if place == "input":
        handle = module.register_forward_pre_hook(lambda _, inputs: (replace(inputs[0]), *inputs[1:]))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: replace(output))
    try:
        loss = loss_of(pl_module, batch)
    finally:
        handle.remove()
    return leaf, loss


def _share(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> Tensor:
    """The part of the batch of all processes that this process has."""
    size = torch.tensor(float(extract_batch_size(batch)), device=pl_module.device)
    return size / trainer.strategy.reduce(size.clone(), reduce_op="sum")


def _scale(trainer: pl.Trainer) -> float:
    """The loss scale of float16 training, a power of two, without which small gradients vanish there."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    return scaler.get_scale()


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x).double().square()


def is_due(trainer: pl.Trainer, batch_index: int, every_n_steps: int) -> bool:
    """Whether a step of the optimizer begins whose number is a multiple; with accumulation its first batch counts."""
    return trainer.global_step % every_n_steps == 0 and batch_index % trainer.accumulate_grad_batches == 0


def log(trainer: pl.Trainer, values: dict[str, Tensor]) -> None:
    """Log numbers that are the same on every process, at the step that begins, regardless of ``log_every_n_steps``."""
    numbers = {}
    for name, value in values.items():
        numbers[name] = value.item()
        trainer.callback_metrics[name] = value.float().cpu()
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)


def check_steps(callback: str, every_n_steps: int, lengths: Sequence[float]) -> None:
    """Check the numbers that a callback was given.

    Raises:
        ValueError: for a period or step length that is not positive, and without any step length.
    """
    if every_n_steps < 1:
        raise ValueError(f"{callback}: every_n_steps must be at least 1, got {every_n_steps}")
    if not lengths or not all(0 < eta < math.inf for eta in lengths):
        raise ValueError(f"{callback}: step lengths must be positive numbers, at least one, got {list(lengths)}")


def check_module(callback: str, pl_module: pl.LightningModule, layer: str) -> None:
    """Check before the training that a model can be measured.

    Raises:
        ValueError: for a model without ``loss(batch)``, which computes the loss without logging it, or without the
            layer.
    """
    if not has_loss(pl_module):
        raise ValueError(
            f"{callback}: {type(pl_module).__name__} has no method loss(batch), which returns the mean loss of a batch"
        )
    if layer not in dict(pl_module.named_modules()):
        names = ", ".join(name for name, _ in pl_module.named_children())
        raise ValueError(f"{callback}: the model has no layer {layer!r}: choose a name within {names}")

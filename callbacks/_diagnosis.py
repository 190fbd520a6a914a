"""The cause of a non-finite loss or gradient: functions of a model and a batch, which leave no trace in the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from ._loss import has_loss, loss_of
from ._untouched import untouched


def diagnose(pl_module: pl.LightningModule, batch: Any) -> str | None:
    """The cause of a non-finite loss of a batch: the batch itself, a weight, or a layer of the forward pass.

    The forward pass is run again. With several processes each must call this, as layers may communicate.

    Args:
        pl_module: the model; without a method ``loss(batch)`` only batch and weights are checked.
        batch: a batch on the device of the model.

    Returns:
        The cause in a few words, or ``None`` if the values of this forward pass are finite.
    """
    # Run it even if the batch or a weight explains everything: another process may need it.
    layer = _first_non_finite_layer(pl_module, batch)
    if first_non_finite(_tensors(batch)) is not None:
        return "the batch contains non-finite values"
    if weight := diverged_weight(pl_module):
        return weight
    return layer and f"{layer}: lower the learning rate"


def diverged_weight(module: nn.Module) -> str | None:
    """The first weight with non-finite values, as a sentence, or ``None``."""
    name = first_non_finite(module.named_parameters())
    return name and (
        f"the weight {name} contains non-finite values, an earlier update diverged: lower the learning rate"
    )


def first_non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor with non-finite values, or ``None``."""
    floating = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
    # One number to wait for instead of one per tensor; the largest entry cannot overflow.
    if not floating or get_total_norm(floating.values(), norm_type=torch.inf).isfinite():
        return None
    return next(name for name, tensor in floating.items() if not tensor.isfinite().all())


def gradients(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Name and gradient of the parameters that have one."""
    named = module.named_parameters()
    return [(name, parameter.grad) for name, parameter in named if parameter.grad is not None]


def _first_non_finite_layer(pl_module: pl.LightningModule, batch: Any) -> str | None:
    """The first layer of the forward pass with a non-finite output; spectral layers describe the reason themselves."""
    if not has_loss(pl_module):
        return None
    found: list[str] = []

    def check(name: str, _: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(f"first non-finite output in {name}")

    hooks = [module.register_forward_hook(partial(check, name)) for name, module in pl_module.named_modules() if name]
    try:
        with untouched(pl_module, on_non_finite=found.append), torch.no_grad():
            loss_of(pl_module, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return next(iter(found), None)


def _tensors(batch: Any, name: str = "batch") -> Iterable[tuple[str, Tensor]]:
    """The tensors of a batch, which may be nested in lists and dictionaries."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, f"{name}.{key}")
    elif isinstance(batch, list | tuple):
        for index, value in enumerate(batch):
            yield from _tensors(value, f"{name}.{index}")

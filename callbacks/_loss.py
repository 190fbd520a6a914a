"""The loss of a batch outside of a training step, for monitors and the diagnosis."""

from __future__ import annotations

import inspect
from typing import Any

import pytorch_lightning as pl
from torch import Tensor


def has_loss(pl_module: pl.LightningModule) -> bool:
    """Whether the model has a method ``loss(batch)``; an attribute ``loss`` of another kind does not count."""
    loss = getattr(pl_module, "loss", None)
    if not inspect.ismethod(loss):
        return False
    try:
        inspect.signature(loss).bind("a batch")
    except TypeError:
        return False
    return True


def loss_of(pl_module: Any, batch: Any) -> Tensor:
    """The mean loss of a batch, by the model's method ``loss(batch)``: the loss, or a tuple that begins with it."""
    result = pl_module.loss(batch)
    if isinstance(result, tuple):
        return result[0]
    return result

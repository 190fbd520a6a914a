"""Forward passes that leave no trace in a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ._library import spectral_layers


@contextmanager
def untouched(
    pl_module: pl.LightningModule, on_non_finite: Callable[[str], None] = lambda message: None
) -> Iterator[None]:
    """Restore the buffers and attributes of all modules, the counts of spectral layers and the random state afterwards.

    Buffers are the statistics of batch norm, for example. Observers of spectra are not called meanwhile. A spectral
    layer returns NaN for non-finite values: an error in one process would leave the others waiting in their next
    communication.

    Args:
        pl_module: the model.
        on_non_finite: receives the message of the error that a spectral layer would have raised.
    """
    modules = list(pl_module.modules())
    attributes = [dict(vars(module)) for module in modules]
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []
    for module in modules:
        for name, buffer in module.named_buffers(recurse=False):
            buffers.append((module, name, buffer, buffer.clone()))
    devices = []
    if pl_module.device.type != "cpu":  # the generator of the CPU is always restored
        devices.append(pl_module.device)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices, device_type=pl_module.device.type))
            for layer in spectral_layers(pl_module).values():
                stack.enter_context(layer.unobserved())
                layer.non_finite_handler = on_non_finite  # put back with the other attributes
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                setattr(module, name, buffer.copy_(value))
        for module, found in zip(modules, attributes, strict=True):
            vars(module).clear()
            vars(module).update(found)

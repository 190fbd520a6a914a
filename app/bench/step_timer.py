"""Times the parts of the training steps that a Lightning `Trainer` runs.

Shapes: B batch, C channels, h x w positions, d pooled features, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import Profiler
from torch import Tensor, nn

MODULES = ("backbone", "pooling", "classifier")
"""Attributes of the model, in the order of its forward pass."""

LOADER = "loader"
"""The time that a step waits for its batch, and for the batch to reach the device."""

PARTS = (
    "backbone forward",
    "pooling forward",
    "classifier forward",
    "classifier backward",
    "pooling backward",
    "backbone backward",
    "treatments",
    "optimizer",
)
"""The parts of a step, in their order; the gradient of the loss counts as the classifier's."""


def check_modules(model: nn.Module) -> None:
    """Check that a model has the modules whose time is measured.

    Raises:
        ValueError: if one is missing.
    """
    missing = [name for name in MODULES if not isinstance(getattr(model, name, None), nn.Module)]
    if missing:
        raise ValueError(
            "the parts of a step are those of a model with the modules backbone, pooling and classifier, called in "
            f"this order: {type(model).__name__} has no {' and no '.join(missing)}"
        )


class Stopwatch:
    """Measures the seconds between two moments, after the work on the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start()

    def start(self) -> None:
        self._last = self._now()

    def split(self) -> float:
        """Seconds since the last `start` or `split`."""
        before, self._last = self._last, self._now()
        return self._last - before

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class StepTimer(Profiler):
    """Attributes the seconds of every training step to `LOADER` and `PARTS`.

    The trainer reports the beginning and end of each of its hooks to its profiler. Inside the forward and backward
    pass, hooks of the three modules mark where one part ends and the next begins. Nothing of the step is replaced, so
    the loop that is measured is the one that trains. Time that belongs to no part (metrics, logging, other callbacks,
    zeroing the gradients) is not counted.

    Attributes:
        steps: seconds by part, one dictionary per step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []
        self._seconds = _nothing()
        self._watch = Stopwatch(torch.device("cpu"))
        self._treatments: set[str] = set()
        self._in_forward = False
        self._backward_part: str | None = None

    @contextmanager
    def watching(
        self, model: pl.LightningModule, treatments: Iterable[pl.Callback], device: torch.device
    ) -> Iterator[None]:
        """Hook into the modules of a model as long as the context lasts.

        Args:
            model: a model with `MODULES`.
            treatments: callbacks whose `on_before_optimizer_step` counts as a treatment.
            device: device of the training; the clock waits for it.
        """
        self._watch = Stopwatch(device)
        self._treatments = {callback.state_key for callback in treatments}
        handles = []
        for name in MODULES:
            module = getattr(model, name)
            handles.append(module.register_forward_pre_hook(self._before_forward))
            handles.append(module.register_forward_hook(partial(self._after_forward, name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start(self, action_name: str) -> None:
        """Called by the trainer before each hook; `action_name` is ``[OWNER]NAME.HOOK``."""
        owner, _, hook = action_name.rpartition(".")
        if hook == "training_step":
            self._in_forward = True
        elif hook == "on_after_backward" and self._backward_part is not None:
            # the first of these hooks ends the backward pass; at the others no part is running
            self._end(self._backward_part)
            self._backward_part = None
        elif hook in ("train_dataloader_next", "batch_to_device") or self._is_treatment(owner, hook):
            self._watch.start()

    def stop(self, action_name: str) -> None:
        """Called by the trainer after each hook."""
        owner, _, hook = action_name.rpartition(".")
        if hook == "training_step":
            self._in_forward = False
        elif hook in ("train_dataloader_next", "batch_to_device"):
            self._end(LOADER)
        elif self._is_treatment(owner, hook):
            self._end("treatments")
        elif owner.startswith("[LightningModule]"):
            self._after_hook_of_module(hook)

    def _after_hook_of_module(self, hook: str) -> None:
        """The model's own hook is the last of each kind: what comes after it is the work itself."""
        if hook == "on_before_backward":
            self._backward_part = "classifier backward"
            self._watch.start()
        elif hook == "configure_gradient_clipping":
            self._watch.start()
        elif hook == "optimizer_step":
            self._end("optimizer")
            self.steps.append(self._seconds)
            self._seconds = _nothing()

    def _is_treatment(self, owner: str, hook: str) -> bool:
        return hook == "on_before_optimizer_step" and owner.removeprefix("[Callback]") in self._treatments

    def _before_forward(self, *_: Any) -> None:
        # Other forward passes, such as those of a monitor, run outside of the training step.
        if self._in_forward:
            self._watch.start()

    def _after_forward(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not self._in_forward:
            return
        self._end(f"{name} forward")
        # The gradient with respect to this output is the last thing that the next module computes. Module hooks would
        # need an input that requires a gradient, which images do not.
        if name != MODULES[-1] and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(partial(self._enter_backward, f"{name} backward"))  # type: ignore[no-untyped-call]

    def _enter_backward(self, part: str, gradient: Tensor) -> None:
        if self._backward_part is not None:
            self._end(self._backward_part)
            self._backward_part = part

    def _end(self, part: str) -> None:
        self._seconds[part] += self._watch.split()


def _nothing() -> dict[str, float]:
    return dict.fromkeys((LOADER, *PARTS), 0.0)

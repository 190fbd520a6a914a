"""Check all of a checkpoint before Lightning restores it, against the run that takes it over.

`read_run` checks what can be known without a model. This module checks the rest, where Lightning has built model,
optimizer and schedule: every state, so that a wrong one is an error that names the checkpoint, rather than a puzzling
failure of the first step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from app.cli.callback_states import check_callback_state
from app.cli.messages import explain
from app.cli.optimizer_state import check_optimizer_states, count_states
from app.cli.schedule_state import check_rates, check_schedule_states
from app.cli.state_kinds import check_like, is_number, is_whole
from app.console.text import brief, printable
from app.models.torch_files import is_finite
from datamodules.training_position import TrainingPosition

LOOPS = ("fit_loop", "validate_loop", "test_loop", "predict_loop")
"""The loops of Lightning; each is an attribute of the trainer, and an entry of ``loops``."""

STATES_COUNTED = "optimizer_state_counts"
"""Entry of a checkpoint: the number of parameters with a state, for each optimizer."""


class CheckedRestoration(pl.Callback):
    """Checks the states in a checkpoint against the run that restores it.

    Works with every LightningModule. Strategies that restore an optimizer in their own way (FSDP, DeepSpeed) do so
    after this callback's last hook: there the optimizer's state is left to them.

    Raises:
        ValueError: for a state that does not fit; the message names its entry.
    """

    def __init__(self) -> None:
        self._checkpoint: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[STATES_COUNTED] = count_states(checkpoint.get("optimizer_states", []))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _check_weights(checkpoint, pl_module)
        _check_loops(checkpoint.get("loops") or {}, trainer)
        _check_data(checkpoint, trainer)
        _check_precision(checkpoint, trainer)
        states = checkpoint.get("callbacks") or {}
        for callback in trainer.callbacks:
            state = states.get(callback.state_key)
            if state is None:
                continue
            check_callback_state(state, callback, f"callbacks.{type(callback).__name__}")
        if trainer.training:
            self._checkpoint = checkpoint

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Lightning has built optimizer and schedule between these two hooks, and restores them after this one.
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None or not trainer.strategy.lightning_restore_optimizer:
            return
        same_settings = isinstance(checkpoint.get("training_setup"), dict)
        schedules = [configuration.scheduler for configuration in trainer.lr_scheduler_configs]
        check_optimizer_states(
            checkpoint["optimizer_states"],
            trainer.optimizers,
            same_settings=same_settings,
            steps=checkpoint.get("global_step", 0),
            counts=checkpoint.get(STATES_COUNTED),
        )
        check_schedule_states(checkpoint["lr_schedulers"], schedules, same_settings=same_settings)
        if same_settings:
            check_rates(checkpoint["lr_schedulers"], checkpoint["optimizer_states"])


def _check_weights(checkpoint: Mapping[str, Any], pl_module: pl.LightningModule) -> None:
    """Check that weights have the dtype that they have here: torch would convert them silently."""
    stored = checkpoint["state_dict"]
    for name, here in pl_module.state_dict().items():
        tensor = stored.get(name)
        if not isinstance(tensor, Tensor) or not isinstance(here, Tensor):
            continue
        if tensor.is_floating_point() != here.is_floating_point() or tensor.is_complex() != here.is_complex():
            raise ValueError(f"state_dict.{name} is of {tensor.dtype}, and here of {here.dtype}".replace("torch.", ""))
    for name, parameter in pl_module.named_parameters():
        if name in stored and not parameter.is_meta and not is_finite(parameter.detach()):
            raise ValueError(f"state_dict.{name} contains non-finite values: it is damaged, or its training diverged")


def _check_loops(stored: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Check the counters of the loops."""
    for name in LOOPS:
        if name not in stored:
            continue
        here = getattr(trainer, name).state_dict()
        check_like(stored[name], here, f"loops.{name}")
        for key in filter(lambda key: key.endswith("_progress"), here):
            if key not in stored[name]:
                raise ValueError(f"loops.{name} has no {key}")
            _check_counters(stored[name][key], here[key], f"loops.{name}.{key}")


def _check_counters(stored: Mapping[str, Any], here: Mapping[str, Any], name: str) -> None:
    # Lightning makes every entry an attribute of the counter, and leaves missing ones at zero.
    if stored.keys() != here.keys():
        different = sorted(map(str, stored.keys() ^ here.keys()))
        raise ValueError(f"{name} has other entries: {brief(', '.join(different))} is missing or unknown")
    for key, value in stored.items():
        if isinstance(value, dict):
            _check_counters(value, here[key], f"{name}.{key}")
        elif not isinstance(value, bool) and value < 0:
            raise ValueError(f"{name}.{key} is {value}, and cannot be negative")


def _check_data(checkpoint: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Check the state of the data module; in that of this program's, the types of the `TrainingPosition`."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    name = type(data).__qualname__
    if data is None or name not in checkpoint or not type(data).__module__.startswith("datamodules."):
        return
    state = checkpoint[name]
    check_like(state, {}, name)
    # The state has been loaded already. What is wrong in it would be noticed when the order of the images is drawn.
    for field in dataclasses.fields(TrainingPosition):
        value = state.get(field.name, field.default)
        if value == field.default:
            continue
        if field.name == "fingerprint":
            check_like(value, "", f"{name}.{field.name}")
        elif not is_whole(value) or value < 0:
            raise ValueError(f"{name}.{field.name} is {brief(value, 80)}, not a count")


def _check_precision(checkpoint: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Check the scale of the loss in mixed precision."""
    plugin = trainer.precision_plugin
    for name in (type(plugin).__qualname__, "native_amp_scaling_state"):
        if name not in checkpoint:
            continue
        check_like(checkpoint[name], plugin.state_dict(), name)
        scale = checkpoint[name].get("scale", 1.0)
        if not is_number(scale) or not 0 < scale < float("inf"):
            raise ValueError(f"{name}.scale is {brief(scale)}, not a positive number")


@contextmanager
def errors_name_the_checkpoint(trainer: pl.Trainer) -> Iterator[None]:
    """Put the name of the checkpoint before an error that comes up while it is restored.

    Raises:
        ValueError: in place of such an error.
    """
    try:
        yield
    except Exception as error:
        # Lightning (2.6) has no public name for the time between reading a checkpoint and having restored it.
        restoring = bool(trainer._checkpoint_connector._loaded_checkpoint)
        path = str(trainer.ckpt_path)
        if not restoring or path in str(error):
            raise
        reason = explain(error)
        if isinstance(error, KeyError):
            reason = f"its states have no entry {brief(error.args[0] if error.args else '')}"
        raise ValueError(f"--ckpt_path {printable(path)}: {reason}") from error

"""Check the states of schedules in a checkpoint, before they are restored, against the schedules that take them over.

torch makes every entry an attribute of the schedule, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.cli.state_kinds import check_like, is_number
from app.console.text import brief

CHANGING = ("last_epoch", "best", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i")
"""Entries of torch's schedules that change in the course of a training; names with an underscore do too."""

COUNTS = ("last_epoch", "_step_count")
"""Entries that count epochs or steps."""

LIBRARIES = ("torch.optim.", "pytorch_lightning.")
"""Where schedules come from of which it is known what changes."""


def check_schedule_states(stored: Sequence[Any], schedules: Sequence[Any], *, same_settings: bool) -> None:
    """Check the states of all schedules.

    Args:
        stored: the ``lr_schedulers`` of a checkpoint.
        schedules: those of the run that would resume it.
        same_settings: whether the run has the settings of the checkpoint: then stored settings must be equal to those
            here.

    Raises:
        ValueError: for missing and unknown entries, and for wrong kinds and values; the message names them.
    """
    if len(stored) != len(schedules):
        raise ValueError(f"it holds the states of {len(stored)} schedules, and there are {len(schedules)}")
    for index, (state, schedule) in enumerate(zip(stored, schedules, strict=True)):
        name = f"lr_schedulers[{index}]"
        check_like(state, {}, name)
        here = schedule.state_dict()
        for key in state:
            # Such an entry would take the place of a method, or of the optimizer.
            if key not in here and hasattr(schedule, str(key)):
                raise ValueError(f"{name}.{brief(key)} is not an entry of such a schedule")
        known = type(schedule).__module__.startswith(LIBRARIES)
        _check_state(state, here, name, same_settings and known)


def _check_state(state: Mapping[Any, Any], here: Mapping[str, Any], name: str, same_settings: bool) -> None:
    for key, value in here.items():
        place = f"{name}.{key}"
        if key not in state:
            if key.startswith("_") and key != "_last_lr":  # differs between versions of torch
                continue
            raise ValueError(f"{name} has no {key}")
        check_like(state[key], value, place, whole=key in COUNTS)
        if key == "_schedulers":  # schedules made of schedules
            for index, (inner, inner_here) in enumerate(zip(state[key], value, strict=True)):
                _check_state(inner, inner_here, f"{place}[{index}]", same_settings)
        elif same_settings and not key.startswith("_") and key not in CHANGING and state[key] != value:
            raise ValueError(f"{place} is {brief(state[key])}, and the settings beside it say {brief(value)}")
        if key in COUNTS and state[key] < 0:
            raise ValueError(f"{place} is {state[key]}, and cannot be negative")
        if key == "_last_lr" and len(state[key]) != len(value):
            raise ValueError(f"{place} has {len(state[key])} learning rates, not {len(value)}")


def check_rates(schedules: Sequence[Any], optimizers: Sequence[Any]) -> None:
    """Check that the learning rates of the optimizer are those that the schedule has set, where there is one of each.

    Raises:
        ValueError: if they differ.
    """
    if len(schedules) != 1 or len(optimizers) != 1:
        return
    rates = schedules[0].get("_last_lr", [])
    for index, (rate, group) in enumerate(zip(rates, optimizers[0]["param_groups"], strict=False)):
        if is_number(rate) and is_number(group["lr"]) and rate != group["lr"]:
            raise ValueError(
                f"optimizer_states[0].param_groups[{index}].lr is {group['lr']}, and the schedule has set {rate}"
            )

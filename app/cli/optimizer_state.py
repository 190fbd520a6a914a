"""Check the states of optimizers in a checkpoint, before they are restored, against the optimizers that take them over.

torch compares the number of parameters only. A buffer of another shape fails in the first step, with an error about
broadcasting; a missing one silently starts from zero, and another learning rate is silently used.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from app.cli.state_kinds import check_like, check_tensor_like, is_number, is_whole
from app.console.text import brief
from app.models.torch_files import is_finite

NOT_NEGATIVE = ("step", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "acc_delta", "sum", "exp_inf", "n_iter")
"""Entries of torch's optimizers that are counts, or means of squares, whose roots are taken."""

SCHEDULED = ("lr", "momentum", "betas", "base_momentum", "max_momentum", "max_lr", "min_lr")
"""Settings that a schedule may change in the course of a training."""


def check_optimizer_states(
    stored: Sequence[Any], optimizers: Sequence[Optimizer], *, same_settings: bool, steps: int, counts: Any = None
) -> None:
    """Check the states of all optimizers.

    Args:
        stored: the ``optimizer_states`` of a checkpoint.
        optimizers: those of the run that would resume it.
        same_settings: whether the run has the settings of the checkpoint: then stored settings must be equal to those
            here.
        steps: steps that the checkpoint was trained for.
        counts: number of parameters with a state, for each optimizer, as the checkpoint itself says; else ``None``.

    Raises:
        ValueError: for missing and unknown entries, and for wrong kinds, shapes and values; the message names them.
    """
    if len(stored) != len(optimizers):
        raise ValueError(f"it holds the states of {len(stored)} optimizers, and there are {len(optimizers)}")
    for index, (state, optimizer) in enumerate(zip(stored, optimizers, strict=True)):
        name = f"optimizer_states[{index}]"
        check_like(state, {"state": {}, "param_groups": []}, name)
        identifiers = _check_groups(state["param_groups"], optimizer, name, same_settings)
        _check_parameters(state["state"], optimizer, identifiers, name)
        _check_completeness(state["state"], optimizer, steps, name)
        counted = isinstance(counts, list) and len(counts) == len(stored) and is_whole(counts[index])
        if counted and counts[index] != len(state["state"]):
            raise ValueError(f"{name} holds {len(state['state'])} of {counts[index]} entries")


def count_states(states: Any) -> list[int]:
    """Return the number of parameters with a state, for each optimizer, to be stored beside the states."""
    return [len(state["state"]) for state in states if isinstance(state, dict) and "state" in state]


def _check_groups(stored: Sequence[Any], optimizer: Optimizer, name: str, same_settings: bool) -> list[int]:
    """Check the settings of the parameter groups; return the numbers by which their parameters are stored."""
    groups = optimizer.param_groups
    if len(stored) != len(groups):
        raise ValueError(f"{name} has {len(stored)} parameter groups, and there are {len(groups)}")
    identifiers: list[int] = []
    for index, (settings, group) in enumerate(zip(stored, groups, strict=True)):
        place = f"{name}.param_groups[{index}]"
        check_like(settings, {key: value for key, value in group.items() if key != "params"}, place, whole=False)
        check_like(settings, {"params": [0]}, place)
        if len(settings.get("params", [])) != len(group["params"]):
            raise ValueError(f"{place} is not of {len(group['params'])} parameters")
        identifiers += settings["params"]
        for key, value in group.items():
            _check_setting(settings, key, value, place)
            differs = key in settings and key not in ("params", *SCHEDULED) and settings[key] != value
            if same_settings and differs:
                raise ValueError(
                    f"{place}.{key} is {brief(settings[key])}, and the settings beside it say {brief(value)}"
                )
    if len(set(identifiers)) != len(identifiers):
        raise ValueError(f"{name} has a parameter in two groups")
    return identifiers


def _check_setting(settings: Mapping[str, Any], key: str, here: Any, place: str) -> None:
    if key not in settings:
        # Options that later versions of torch have added are off where they are missing.
        if here in (None, False):
            return
        raise ValueError(f"{place} has no {key}")
    value = settings[key]
    if key in SCHEDULED:
        for number in value if isinstance(value, list | tuple) else [value]:
            if is_number(number) and not 0 <= number < float("inf"):
                raise ValueError(f"{place}.{key} is {brief(value)}, not a finite number of at least 0")


def _check_parameters(states: Mapping[Any, Any], optimizer: Optimizer, identifiers: list[int], name: str) -> None:
    """Check the state of each parameter."""
    by_identifier: dict[Any, tuple[Tensor, dict[str, Any]]] = {}
    numbers = iter(identifiers)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            by_identifier[next(numbers)] = (parameter, group)
    for identifier, state in states.items():
        place = f"{name}.state[{brief(identifier)}]"
        if identifier not in by_identifier:
            raise ValueError(f"{place} belongs to no parameter")
        check_like(state, {}, place)
        _check_state(state, optimizer, *by_identifier[identifier], place)


def _check_state(
    state: Mapping[Any, Any], optimizer: Optimizer, parameter: Tensor, group: dict[str, Any], place: str
) -> None:
    if isinstance(optimizer, LBFGS):
        _check_flat_vectors(state, sum(entry.numel() for entry in group["params"]), place)
    for key, here in (state_after_a_step(optimizer, parameter, group) or {}).items():
        if key not in state:
            raise ValueError(f"{place} has no {key}")
        if isinstance(here, Tensor):
            check_tensor_like(state[key], here, f"{place}.{key}")
        elif not (is_number(here) and isinstance(state[key], Tensor) and not state[key].ndim):
            check_like(state[key], here, f"{place}.{key}", whole=False)
    for key, value in state.items():
        _check_values(value, f"{place}.{brief(key)}", key in NOT_NEGATIVE)


def _check_values(value: Any, name: str, not_negative: bool) -> None:
    if isinstance(value, float | int):
        value = torch.tensor(value, dtype=torch.float64)
    if not isinstance(value, Tensor) or value.is_complex() or value.layout is not torch.strided or value.is_meta:
        return
    if not is_finite(value):
        raise ValueError(f"{name} contains non-finite values: the file is damaged, or its training diverged")
    if not_negative and bool((value < 0).any()):
        raise ValueError(f"{name} contains negative values")


def _check_flat_vectors(state: Mapping[Any, Any], size: int, place: str) -> None:
    """Check the state of `LBFGS`, whose vectors run over all parameters."""
    for key, value in state.items():
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Tensor) and entry.ndim and entry.shape != (size,):
                raise ValueError(f"{place}.{brief(key)} is not a vector of {size} numbers")


def _check_completeness(states: Mapping[Any, Any], optimizer: Optimizer, steps: int, name: str) -> None:
    """Refuse an optimizer without any state, where a step leaves one."""
    if states or not steps:
        return
    group = optimizer.param_groups[0]
    if isinstance(optimizer, LBFGS) or state_after_a_step(optimizer, group["params"][0], group):
        raise ValueError(f"{name} holds no state of its parameters, after {steps} steps")


def state_after_a_step(optimizer: Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state that a step of an optimizer leaves for a parameter, with unimportant numbers.

    This holds for any optimizer: a second one of the same class and settings makes a step with a parameter of the same
    shape. It does so on torch's device without memory, and on the CPU where that cannot be.

    Returns:
        ``None`` for optimizers that cannot be made and stepped like this.
    """
    settings = {key: value for key, value in group.items() if key != "params"}
    for option in ("foreach", "fused", "capturable"):  # these ask for devices, and do not change the state
        if option in settings:
            settings[option] = False
    for device in ("meta", "cpu"):
        twin = torch.zeros(parameter.shape, dtype=parameter.dtype, device=device, requires_grad=True)
        twin.grad = torch.zeros_like(twin)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = type(optimizer)([{"params": [twin], **settings}])  # type: ignore[call-arg]
                other.step()
        except Exception:  # Any optimizer of the user's, with requirements of its own.
            continue
        return dict(other.state[twin])
    return None

"""Build the model of a checkpoint without memory, to check that its hyper-parameters describe a model at all.

Otherwise a number of classes or channels in a prepared file could ask for any amount of memory, and an error of the
model would look as if the user had written the value.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from app.models.classifier import NOT_SAVED, Classifier

FEW_CLASSES = 2
"""Number of classes in a trial where the data or the user say how many there are."""

LARGER = 4
"""How much larger than its file a model may be: the rest is initialised, or a difference that is named later."""

LARGE = 10**5
"""Number of classes or channels above which an error of torch is taken for one of size."""

FREE_NUMBERS = 10**7
"""Numbers that any model may have."""


def check_model(model: Namespace, state: Mapping[str, Any], classes_are_given: bool) -> None:
    """Build a `Classifier` without memory for its numbers, and compare its size with that of its weights in the file.

    Nothing is checked of other classes, and of models with objects of the user's classes: making these may have
    effects.

    Args:
        model: class and arguments.
        state: the weights of the file.
        classes_are_given: whether the number of classes is not that of the checkpoint.

    Raises:
        ValueError: if the model cannot be built, or is far larger.
    """
    if model["class_path"].rpartition(".")[2] != Classifier.__name__ or not model["class_path"].startswith("app."):
        return
    arguments = {key: value for key, value in vars(model["init_args"]).items() if key not in NOT_SAVED}
    if any(isinstance(value, Namespace) or _describes_object(value) for value in arguments.values()):
        return
    if classes_are_given:
        arguments["num_classes"] = FEW_CLASSES
    trial = _build(arguments)
    if trial is None:
        return
    numbers, stored = _numbers(trial.state_dict()), _numbers(state)
    if numbers > LARGER * stored + FREE_NUMBERS:
        raise ValueError(f"it asks for a model of {numbers:.1e} numbers, and holds {stored:.1e}")


def _build(arguments: Mapping[str, Any]) -> nn.Module | None:
    """Return the model, or ``None`` if it cannot be built without memory, for which a layer may have its reasons."""
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            warnings.simplefilter("ignore")
            return Classifier(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    except Exception as error:
        if any(map(_is_large, arguments.values())):  # Sizes that torch cannot even write down.
            raise ValueError(f"{type(error).__name__}: {error}") from error
        return None


def _is_large(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_large, value))
    return isinstance(value, int) and value > LARGE


def _numbers(state: Mapping[str, Any]) -> int:
    return sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))


def _describes_object(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value

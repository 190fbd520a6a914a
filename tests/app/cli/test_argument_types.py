"""Plain values and the types of the model's arguments."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

from app.cli.argument_types import accepts, argument_types
from app.models.classifier import Classifier

TYPES = argument_types(Classifier)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 3, True), (int, True, False), (int, "3", False), (int, 3.0, False), (int, 10**10, False),
        (float, 3, True), (float, 0.5, True), (float, True, False),
        (bool, True, True), (bool, 1, False), (str, "x", True), (str, 3, False),
        (None, None, True), (int | None, None, True), (int | None, "x", False),
        (Literal["a", "b"], "a", True), (Literal["a", "b"], "c", False), (Literal[1], True, False),
        (list[int], [1, 2], True), (list[int], [1, "x"], False), (list[int], {"a": 1}, False),
        (dict[str, int], {"a": 1}, True), (dict[str, int], {1: 1}, False), (dict, {"a": [1]}, True),
        (Any, {"a": [1, "x", None]}, True), (Any, {"a": 10**10}, False), (Any, {"a": torch.zeros(1)}, False),
        (Callable[[Any], Any], "os.system", False), (torch.nn.Module, {"class_path": "x"}, False),
    ],
)  # fmt: skip
def test_plain_values(kind, value, expected):
    assert accepts(kind, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_classes", 6, True), ("num_classes", None, True), ("num_classes", "6", False),
        ("num_classes", 10**10, False), ("backbone", "resnet50", True), ("backbone", 5, False),
        ("dim", 256, True), ("dim", [256, 128], True), ("dim", None, True), ("dim", "x", False),
        ("meta_options", {"iterations": 7}, True), ("meta_options", [7], False), ("meta_options", {3: 7}, False),
        ("spectral_dtype", "float32", True), ("spectral_dtype", None, False), ("spectral_dtype", "float16", False),
        ("function", None, True), ("function", {"class_path": "app.spectral.Power"}, False),
        ("weight_treatment", "spectral", True), ("weight_treatment", "other", False),
        ("classifier_learning_rate", 0.1, True), ("classifier_learning_rate", "0.1", False),
    ],
)  # fmt: skip
def test_the_arguments_of_the_classifier(name, value, expected):
    assert accepts(TYPES[name], value) == expected


def test_a_function_whose_types_cannot_be_known():
    def function(a: "Nowhere") -> None:  # noqa: F821
        pass

    assert argument_types(function) == {}

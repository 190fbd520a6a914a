"""Bounds of what is read from a file."""

from collections import Counter, OrderedDict

import pytest
import torch

from app.models.plain_data import DEEPEST, check_plain


class Unknown:
    pass


def laughs(levels):
    """Lists that refer to each other twice: 2^levels entries in a few kilobytes."""
    value: list = ["lol"] * 10
    for _ in range(levels):
        value = [value, value]
    return value


def contains_itself():
    value: list = []
    value += [value, value]
    return value


def nested(levels):
    value = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def with_attribute(name, value):
    dictionary = OrderedDict(a=1)
    dictionary.__dict__[name] = value
    return dictionary


def tensor_with_attribute(name):
    tensor = torch.zeros(1)
    setattr(tensor, name, 3)
    return tensor


@pytest.mark.parametrize(
    "content",
    [
        None,
        {"a": [1, 2.5, "x", None, True, b"y", 1j, (1,), {2}], 3: {"b": torch.zeros(3)}},
        OrderedDict(a=Counter("aab"), b=torch.Size([1, 2]), c=torch.float32, d=torch.device("cpu")),
        torch.nn.Linear(2, 2).state_dict(),
        nested(DEEPEST - 2),
        laughs(10),
        [0] * 1_200_000,  # many entries that are really there
        torch.zeros(1).expand(1000),
        {"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.zeros(2).to_sparse()},
        2**128,
    ],
)
def test_plain_data_is_accepted(content):
    check_plain(content, file_size=1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (laughs(30), r"unfolds to .*e\+\d+ entries"),
        ({"a": {"b": laughs(30)}}, "unfolds"),
        ({"a": (laughs(30),)}, "unfolds"),
        (["x" * 10**6] * 10**5, "unfolds"),  # one text at many places
        (contains_itself(), "nested more than"),
        (nested(10**4), "nested more than"),
        ({"a": {"b": Unknown()}}, r"a\.b is a Unknown, which is not plain data"),
        ({"a": print}, "a is a builtin_function_or_method, which is not plain data"),
        ({"a": bytearray(3)}, "a is a bytearray"),
        ({"a": torch.zeros(3).untyped_storage()}, "a is a UntypedStorage"),
        ({"a": 1 << 5000}, "a is a number of 5001 bits"),
        ({"w": torch.zeros(1).expand(2**34)}, r"w declares 6\.9e\+10 bytes, and the whole file has 1\.0e\+03"),
        ([torch.zeros(1).expand(10**6 + i) for i in range(100)], "declares"),
        ({torch.zeros(1): 3}, "a key of a dictionary is a Tensor"),
        ({"\x1b[2J": Unknown()}, r"\\x1b\[2J is a Unknown"),
        ({"w": tensor_with_attribute("shape_of_mine")}, None),
        ({"s": with_attribute("items", 3)}, "s has an attribute 'items' in place of that of a dictionary"),
        ({"s": with_attribute("_metadata", 3)}, "versions of the modules in s are not a dictionary"),
        ({"s": with_attribute("_metadata", {"a": {"version": "x"}})}, "in s are not numbers"),
        ({"s": with_attribute("_metadata", {"a": {"version": 2}})}, None),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "content",
)
def test_what_is_refused(content, message):
    if message is None:
        check_plain(content, file_size=1000)
        return
    with pytest.raises(ValueError, match=message):
        check_plain(content, file_size=1000)


def test_an_attribute_in_place_of_a_method_of_a_tensor():
    tensor = torch.zeros(1)
    tensor.__dict__["isfinite"] = 3
    with pytest.raises(ValueError, match="w has an attribute 'isfinite' in place of that of a tensor"):
        check_plain({"w": tensor}, file_size=1000)


def test_classes_that_the_user_allows_torch_to_read(monkeypatch):
    with torch.serialization.safe_globals([Unknown]):
        check_plain({"a": Unknown()}, file_size=1000)

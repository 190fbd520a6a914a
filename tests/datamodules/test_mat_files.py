"""Lists of MATLAB: their structure is checked before scipy reserves memory for what they declare."""

import struct
import zlib

import numpy as np
import pytest
import scipy.io

from datamodules import Dogs
from datamodules.mat_files import LARGEST_LIST, read_mat
from datamodules.official_lists import DamagedListError

HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind, sizes, *parts, name=b"labels"):
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(sizes)}i", *sizes))
    return element(14, head + element(1, name) + b"".join(parts))


def numbers(*values):
    return matrix(6, (len(values), 1), element(9, struct.pack(f"<{len(values)}d", *values)))


def nested(depth):
    inner = numbers(1)
    for _ in range(depth):
        inner = matrix(1, (1, 1), inner)
    return inner


def packed(content):
    stored = zlib.compress(content)
    return struct.pack("<II", 15, len(stored)) + stored


def test_what_is_written_by_hand_is_read(tmp_path):
    for content in (numbers(1, 2), packed(numbers(1, 2)), matrix(1, (2, 1), numbers(1), numbers(2))):
        (tmp_path / "a.mat").write_bytes(HEADER + content)
        (labels,) = read_mat(tmp_path / "a.mat", "labels")
        assert labels.tolist() == [1, 2]


@pytest.mark.parametrize("compressed", [True, False])
def test_everything_that_lists_are_made_of(tmp_path, compressed):
    record = np.zeros((1, 2), dtype=[("name", object), ("n", object)])
    record["name"], record["n"] = [["a", "b"]], [[1, np.zeros((0, 0))]]
    content = {
        "text": "é", "number": 3, "complex": 1 + 2j, "empty": np.zeros((0, 3)), "cells": np.array([["a", 1]], object),
        "record": record, "flag": True, "labels": np.arange(5, dtype=np.uint8),
    }  # fmt: skip
    scipy.io.savemat(tmp_path / "a.mat", content, do_compression=compressed)
    fields = [field.tolist() for field in read_mat(tmp_path / "a.mat", "labels", "cells", "text")]
    assert fields == [[0, 1, 2, 3, 4], ["a", 1], ["é"]]


REFUSED = {
    "cells for 16 gigabytes": (matrix(1, (2**31 - 1, 1)), "larger than the file"),
    "numbers for 32 gigabytes": (matrix(6, (2**16, 2**16), element(9, bytes(8))), "larger than the file"),
    "sizes whose product wraps around": (matrix(6, (2**31 - 1,) * 4, element(9, bytes(8))), "larger than the file"),
    "a negative size": (matrix(6, (-1, -1), element(9, bytes(8))), "larger than the file"),
    "records for gigabytes": (
        matrix(2, (2**30, 1), element(5, struct.pack("<i", 8)), element(1, b"a".ljust(8, b"\0"))),
        "larger than the file",
    ),
    "too few cells": (matrix(1, (3, 1), numbers(1)), "has 1 parts instead of 3"),
    "a bomb": (packed(element(14, bytes(LARGEST_LIST + 1000))), "unpacks to more than"),
    "nested": (nested(20), "nested deeper than 8 levels"),
    "nested without end": (nested(3000), "nested deeper than 8 levels"),
    "a function": (matrix(16, (1, 1), numbers(1)), "an object, a function or a sparse matrix"),
    "an opaque object": (matrix(17, (1, 1), numbers(1)), "an object, a function or a sparse matrix"),
    "an object": (matrix(3, (1, 1), element(1, b"name")), "an object, a function or a sparse matrix"),
    "a sparse matrix": (matrix(5, (1, 1), element(5, bytes(4))), "an object, a function or a sparse matrix"),
    "no matrix": (element(9, bytes(8)), "something that is not a matrix"),
    "cut off": (numbers(1, 2)[:-4], "cut off"),
    "an element beyond the end": (struct.pack("<II", 14, 2**32 - 1), "larger than the file"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_before_it_is_read(tmp_path, kind, monkeypatch):
    content, message = REFUSED[kind]
    (tmp_path / "a.mat").write_bytes(HEADER + content)
    monkeypatch.setattr(scipy.io, "loadmat", None)
    with pytest.raises(DamagedListError, match=rf"^{tmp_path}/a.mat cannot be read: .*{message}"):
        read_mat(tmp_path / "a.mat", "labels")


@pytest.mark.parametrize("content", [b"", b"text", bytes(200), b"\x89HDF\r\n\x1a\n".ljust(128) + bytes(99)])
def test_other_formats(tmp_path, content):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(DamagedListError, match="is not a MATLAB file of version 5 to 7"):
        read_mat(tmp_path / "a.mat", "labels")
    scipy.io.savemat(tmp_path / "a.mat", {"labels": [1, 2]}, format="4")
    with pytest.raises(DamagedListError, match="is not a MATLAB file of version 5 to 7"):
        read_mat(tmp_path / "a.mat", "labels")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a.mat").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DamagedListError, match="1099511627776 bytes, more than any list"):
        read_mat(tmp_path / "a.mat", "labels")


WRONG = {
    "not a number": ({"labels": np.array([[np.nan]] * 9)}, "has the label nan, expected a whole number"),
    "fractions": ({"labels": np.array([[1.5]] * 9)}, "has the label 1.5, expected a whole number"),
    "zero": ({"labels": np.zeros((9, 1))}, "has the label 0, expected 1 to 120"),
    "negative": ({"labels": -np.ones((9, 1))}, "has the label -1, expected 1 to 120"),
    "text": ({"labels": np.array([["x"]] * 9, dtype=object)}, "has the label 'x', expected a whole number"),
    "complex": ({"labels": np.array([[1 + 2j]] * 9)}, "expected a whole number"),
    "fewer": ({"labels": np.ones((8, 1))}, "has 9 files and 8 labels"),
    "none": ({"labels": np.ones((0, 1)), "file_list": np.zeros((0, 1), object)}, "no train images in"),
    "numbers for files": ({"file_list": np.ones((9, 1))}, "for the name of an image"),
    "outside": ({"file_list": np.array([["../../a.jpg"]] * 9, dtype=object)}, "lies outside of its folder"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_lists_that_say_something_wrong(tmp_path, mini, kind):
    change, message = WRONG[kind]
    path = mini.dogs(tmp_path) / "train_list.mat"
    content = scipy.io.loadmat(path)
    fields = {"file_list": content["file_list"], "labels": content["labels"], **change}
    scipy.io.savemat(path, fields)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^Dogs: .*({message})"):
        Dogs(str(tmp_path), num_workers=0, check_counts=False).setup("fit")


@pytest.mark.parametrize("kind", [0, 8, 10, 11, 14, 15, 19, 20, 255])
def test_text_of_an_unknown_kind_does_not_reach_scipy(tmp_path, kind):
    # scipy 1.17 looks the kind up in a table of pointers, and crashes where there is none
    path = tmp_path / "list.mat"
    scipy.io.savemat(path, {"names": np.array(["some name of an image.jpg"], dtype=object)})
    content = path.read_bytes()
    text = content.index(b"some name")
    path.write_bytes(content[: text - 8] + struct.pack("<I", kind) + content[text - 4 :])
    with pytest.raises(DamagedListError, match=r"list\.mat cannot be read"):
        read_mat(path, "names")

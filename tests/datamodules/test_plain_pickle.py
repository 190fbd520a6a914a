"""Pickles of plain data: what may be in them, and that nothing else is executed or reserves memory."""

import os
import pickle
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from datamodules import CIFAR10, ImageNet
from datamodules.plain_pickle import UnsafePickleError, read_bounded, read_plain_pickle
from tests.conftest import ROOT

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol(protocol):
    content = pickle.dumps({"data": IMAGES, "labels": [3, 4], "bytes": b"\xff\0"}, protocol)
    read = read_plain_pickle(content)
    assert (read["data"].bytes_of_images(3072) == IMAGES).all()
    assert (read["labels"], read["bytes"]) == ([3, 4], b"\xff\0")


def test_the_names_of_older_numpy():
    content = pickle.dumps(IMAGES, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert (read_plain_pickle(content).bytes_of_images(3072) == IMAGES).all()


class Command:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_command_is_not_executed(tmp_path, protocol):
    content = pickle.dumps({"data": Command(tmp_path / "run"), "labels": []}, protocol)
    with pytest.raises(UnsafePickleError, match=r"it names posix\.system, which is not plain data; nothing was"):
        read_plain_pickle(content)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_command_in_cifar(tmp_path, mini, file, check):
    (mini.cifar(tmp_path) / "cifar-10-batches-py" / file).write_bytes(pickle.dumps(Command(tmp_path / "run")))
    data = CIFAR10(str(tmp_path), num_workers=0, check_counts=check)
    with pytest.raises((ValueError, FileNotFoundError), match=r"^CIFAR10: [^\n]*(names posix|checksum)"):
        data.setup("fit")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("zip_file", [True, False])
def test_a_command_in_meta_bin(tmp_path, mini, zip_file):
    path = mini.class_folders(tmp_path) / "meta.bin"
    torch.save(({"n01-ant": Command(tmp_path / "run")}, []), path, _use_new_zipfile_serialization=zip_file)
    with pytest.raises(ValueError, match=r"^ImageNet: .*meta.bin cannot be read: it names posix\.system"):
        ImageNet(str(tmp_path), num_workers=0, check_counts=False).setup("fit")
    assert not (tmp_path / "run").exists()


def test_meta_bin_in_the_older_format_of_torch(tmp_path, mini):
    path = mini.class_folders(tmp_path) / "meta.bin"
    torch.save(({"n01-ant": ("ant", "Formica")}, []), path, _use_new_zipfile_serialization=False)
    assert ImageNet(str(tmp_path), check_counts=False).class_names[0] == "ant, Formica"


def array(shape, content, kind="u1"):
    """A pickle of an array whose shape and content are given."""
    items = pickle.dumps((1, shape, np.dtype(kind), False, content), 2)[2:-1]
    head = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return b"\x80\x04" + head + items + b"b."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array((2, 3072), bytes(6144)[:-1]), "not as large as its shape"),
        (array((10**12, 3072), bytes(6144)), "not as large as its shape"),
        (array((-2, 3072), bytes(6144)), "not as large as its shape"),
        (array((2, 3071), bytes(6144)), "does not hold images of 3072 bytes"),
        (array((2.0, 3072), bytes(6144)), "does not hold images"),
        (array(None, bytes(6144)), "does not hold images"),
        (array((2, 3072), bytes(6144 * 8), "f8"), "does not hold images"),
    ],
)
def test_arrays_of_another_form(content, message):
    with pytest.raises(UnsafePickleError, match=message):
        read_plain_pickle(content).bytes_of_images(3072)


LIMIT = 2**31
GREEDY = {
    "the 4294967295th entry of the memo": b"]r\xff\xff\xff\xff.",
    "a text of 2^40 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "a frame of 2^60 bytes": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "a thousand million levels": b"(" * 10**6 + b"t" * 10**6 + b".",
}


@pytest.mark.parametrize("kind", GREEDY)
def test_memory_is_not_reserved_by_numbers_of_the_file(tmp_path, kind):
    (tmp_path / "file").write_bytes(GREEDY[kind])
    code = (
        "import re, sys; from datamodules.plain_pickle import *\n"
        "try: read_plain_pickle(read_bounded(Path(sys.argv[1])))\n"
        "except UnsafePickleError: pass\n"
        # the largest size since this program was started; that of `resource` includes the process that started it
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")], cwd=ROOT, capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 10**6  # kilobytes


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafePickleError, match="1099511627776 bytes, more than any such file"):
        read_bounded(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 2, 3]}, "has the label 3, expected 0 to 2"),
        ({"labels": [0, 1, 2, -1]}, "has the label -1, expected 0 to 2"),
        ({"labels": [0, 1, 2, 1.5]}, "has the label 1.5, expected"),
        ({"labels": [0, 1]}, "does not hold 4 labels"),
        ({"labels": "0123"}, "does not hold 4 labels"),
        ({"data": b"bytes"}, "does not hold images"),
    ],
)
def test_batches_of_cifar_that_do_not_fit(tmp_path, mini, change, message):
    path = mini.cifar(tmp_path) / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **change}))
    with pytest.raises(ValueError, match=rf"^CIFAR10: {path} cannot be read: .*{message}"):
        CIFAR10(str(tmp_path), num_workers=0, check_counts=False).setup("fit")

"""Damaged files, seeded: every image decodes or is one error of ours, and so does every list; memory is bounded."""

import io
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import CIFAR10, Birds, Cars, Dogs, ImageNet
from datamodules.image_reading import UnreadableImageError, read_image
from tests import miniature
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

SECONDS, LIMIT = 20, 4 * 2**30


def flip(content, draw):
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def overwrite(content, draw):
    place = draw.randrange(len(content))
    content[place : place + draw.randint(1, 40)] = draw.randbytes(draw.randint(1, 40))


def truncate(content, draw):
    del content[draw.randrange(len(content)) :]


def blank(content, draw):
    place = draw.randrange(len(content))
    length = min(draw.randint(1, 500), len(content) - place)
    content[place : place + length] = bytes(length)


def large_number(content, draw):
    place = draw.randrange(len(content))
    content[place : place + 4] = draw.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4)])


def header(content, draw):
    content[: draw.randint(1, 16)] = draw.choice(HEADERS)


HEADERS = [
    b"\x89PNG\r\n\x1a\n",
    b"II*\0",
    b"MM\0*",
    b"GIF89a",
    b"\xff\xd8\xff",
    b"BM",
    b"DDS ",
    b"8BPS",
    b"RIFF",
    b"P6 ",
]
DAMAGES = (flip, overwrite, truncate, blank, large_number, header)


def damaged(content, draw):
    content = bytearray(content)
    for _ in range(draw.randint(1, 2)):
        if content:
            draw.choice(DAMAGES)(content, draw)
    return bytes(content)


def formats():
    """An image in every format and mode that Pillow can write here and reads again, by its name."""
    Image.init()
    gradient = np.add.outer(np.arange(48), np.arange(40) * 2).astype(np.uint8)
    images = {"L": Image.fromarray(gradient), "F": Image.fromarray(gradient.astype(np.float32))}
    images["I;16"] = Image.fromarray(gradient.astype(np.uint16) * 257)
    images["I"] = Image.fromarray(gradient.astype(np.int32) * 1000)
    for mode in ("1", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        images[mode] = images["L"].convert("RGB").convert(mode)
    written = {}
    for kind in sorted(Image.SAVE.keys() & Image.OPEN.keys()):
        for mode, image in images.items():
            buffer = io.BytesIO()
            try:
                image.save(buffer, kind)
            except Exception:  # most formats do not know all modes
                continue
            written[f"{kind} {mode}"] = buffer.getvalue()
    return written


def fuzz_images(folder):
    draw, sources, end = random.Random(0), formats(), time.monotonic() + SECONDS
    assert len(sources) > 60
    decoded = refused = 0
    while time.monotonic() < end:
        for name, content in sources.items():
            path = folder / "image.jpg"
            path.write_bytes(damaged(content, draw))
            try:
                assert read_image(path, apply_orientation=draw.random() < 0.5).mode == "RGB"
                decoded += 1
            except UnreadableImageError as error:
                assert str(error).isprintable(), name  # noqa: PT017
                refused += 1
    return decoded, refused


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def commands(content, draw):
    """Put a pickle that calls a command into the middle of another one."""
    command = pickle.dumps(Command(), draw.choice([0, 2, 4]))
    place = draw.randrange(len(content))
    return content[:place] + command[: draw.choice([None, -1])] + content[place:]


def fuzz_lists(folder):
    roots = {
        Birds: miniature.write_birds(folder / "birds"),
        Dogs: miniature.write_dogs(folder / "dogs"),
        Cars: miniature.write_cars_one_list(folder / "cars"),
        CIFAR10: miniature.write_cifar(folder / "cifar"),
        ImageNet: miniature.write_class_folders(folder / "imagenet"),
    }
    torch.save(({"n01-ant": ("ant", "Formica")}, ["n01-ant"]), folder / "imagenet" / "meta.bin")
    lists = []
    for kind, root in roots.items():
        for path in sorted(root.rglob("*")):
            if path.is_file() and path.suffix != ".jpg":
                lists.append((kind, root, path, path.read_bytes()))
    draw, end, read, refused = random.Random(1), time.monotonic() + SECONDS, 0, 0
    while time.monotonic() < end:
        for kind, root, path, content in lists:
            worse = commands(content, draw) if kind in (CIFAR10, ImageNet) and draw.random() < 0.3 else content
            path.write_bytes(damaged(worse, draw) if draw.random() < 0.8 else worse)
            try:
                kind(str(root), num_workers=0, batch_size=1, check_counts=False).setup("fit")
                read += 1
            except (ValueError, FileNotFoundError) as error:
                named = str(error).startswith(f"{kind.__name__}: ") and str(root) in str(error)
                if not named:
                    raise AssertionError(f"{path}: {error}") from error
                refused += 1
            path.write_bytes(content)
    return read, refused


@pytest.mark.parametrize("what", ["images", "lists"])
def test_damaged_files(tmp_path, what):
    """In a process of bounded memory, so that a size of the file that is believed ends it."""
    code = f"from tests.datamodules import test_fuzz; test_fuzz.run({what!r}, {str(tmp_path)!r})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    good, refused, kilobytes = map(int, run.stdout.splitlines()[-1].split())
    print(f"{what}: {good} read, {refused} refused, {kilobytes} kB")
    assert good > 100
    assert refused > 100
    assert kilobytes < 3 * 10**6
    assert not list(tmp_path.rglob("executed"))


def run(what, folder):
    """The part of the test in a process of its own."""
    warnings.simplefilter("ignore")
    os.chdir(folder)
    good, refused = {"images": fuzz_images, "lists": fuzz_lists}[what](Path(folder))
    # the largest size since this program was started; that of `resource` includes the process that started it
    largest = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]
    print(good, refused, largest)

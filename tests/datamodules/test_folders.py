import os
import subprocess
import sys

import pytest
from PIL import Image

from datamodules import ImageFolder
from datamodules.folders import read_folder, walk_images
from tests.conftest import ROOT


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def test_visible_entries_by_kind_sorted(tmp_path):
    for name in ("b.jpg", "a.PNG", ".hidden.jpg", "._a.PNG"):
        (tmp_path / name).touch()
    for name in ("notes.txt", "Thumbs.db"):
        (tmp_path / name).touch()
    for name in ("class.jpg", ".cache"):
        (tmp_path / name).mkdir()
    content = read_folder(tmp_path)
    assert content.images == ["a.PNG", "b.jpg"]
    assert content.folders == ["class.jpg"]
    assert content.others == ["Thumbs.db", "notes.txt"]


def test_a_broken_link_is_an_image_and_a_pipe_is_not(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "to_pipe.jpg").symlink_to(tmp_path / "pipe.jpg")
    assert read_folder(tmp_path).images == ["gone.jpg"]


def test_a_link_back_ends_the_walk(tmp_path):
    image(tmp_path / "a" / "1.png")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "a")
    found = [path.relative_to(tmp_path).as_posix() for path in walk_images(tmp_path)]
    assert found == ["a/1.png", "again/1.png"]


@pytest.mark.parametrize("linked", [False, True])
def test_training_and_prediction_see_the_same_images(tmp_path, linked):
    """Links to folders and to files, hidden files, endings in capitals and rarer formats."""
    photographs = tmp_path / ("elsewhere" if linked else "photographs")
    for name in ("a", "b"):
        for file in ("1.png", "2.JPG", "3.gif", "4.webp"):
            image(photographs / name / file)
        (photographs / name / "._5.png").touch()
        (photographs / name / "6.txt").touch()
    image(photographs / ".trash" / "7.png")
    if linked:
        (tmp_path / "photographs").mkdir()
        for name in ("a", "b"):
            (tmp_path / "photographs" / name).symlink_to(photographs / name)
    root = tmp_path / "photographs"
    data = ImageFolder(str(root), num_workers=0, predict_folder=str(root))
    in_training = sorted(str(root / file) for file, _ in data.files("train") + data.files("val"))
    in_prediction = [str(path) for path in data.predict_dataloader().dataset.files]
    assert in_training == in_prediction
    assert len(in_prediction) == 8


def test_a_link_to_itself_is_named_when_it_is_read(tmp_path):
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    content = read_folder(tmp_path)
    assert content.images == ["loop.jpg"]
    assert content.others == ["loop"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    """In training and in prediction: its images are not left out without a word."""
    for name in ("a", "b"):
        image(tmp_path / name / "1.png")
        image(tmp_path / name / "2.png")
    (tmp_path / "b").chmod(0)
    code = f"""
import os
from datamodules import ImageFolder
os.chdir({str(tmp_path)!r})
os.setuid(65534)
data = ImageFolder(".", num_workers=0, predict_folder=".")
for read in (lambda: data.files("train"), data.predict_dataloader):
    try:
        read()
    except OSError as error:
        print(error)
"""
    tmp_path.chmod(0o755)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert run.stdout.splitlines() == ["[Errno 13] Permission denied: 'b'"] * 2, run.stderr

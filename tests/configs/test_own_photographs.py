"""configs/own_photographs.yaml as its header says: train on a folder of photographs, then predict."""

import csv
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

CONFIG = Path(__file__).parents[2] / "configs" / "own_photographs.yaml"
COLOURS = {"cat": (200, 60, 60), "dog": (60, 200, 60), "yak": (60, 60, 200)}
SHORT = (
    *("--data.batch_size", 4, "--data.num_workers", 0, "--data.image_size", 64),
    *("--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false", "--trainer.num_sanity_val_steps", 0),
)


def photograph(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(str(path.name))
    Image.new("RGB", (draw.randint(70, 99), draw.randint(70, 99)), colour).save(path)


@pytest.fixture
def photographs(tmp_path):
    for name, colour in COLOURS.items():
        for i in range(4):
            photograph(tmp_path / "photographs" / name / f"{i}.jpg", colour)
        photograph(tmp_path / "new" / "deeper" / f"{name}.jpg", colour)
    return tmp_path / "photographs"


def test_train_and_predict_with_nothing_but_a_folder(main, photographs, tmp_path, capsys):
    start = ("--config", CONFIG, "--data.root", photographs, *SHORT)
    assert main("fit", *start, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1) == 0
    assert "validation top-1" in capsys.readouterr().out.splitlines()[-1]
    run = tmp_path / "runs" / "own_photographs" / "version_0"
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["num_classes"] == 3
    assert checkpoint["ImageFolder"]["images"] == 9  # 12 photographs, of each class one for validation
    assert main("predict", *start, "--ckpt_path", "best", "--data.predict_folder", tmp_path / "new") == 0
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [Path(row["file"]).name for row in rows] == ["cat.jpg", "dog.jpg", "yak.jpg"]
    assert {row["class"] for row in rows} <= set(COLOURS)


def test_a_class_more_than_the_checkpoint_has(main, photographs, capsys):
    start = ("--config", CONFIG, "--data.root", photographs, *SHORT)
    assert main("fit", *start, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 1) == 0
    for i in range(2):
        photograph(photographs / "zebra" / f"{i}.jpg", (9, 9, 9))
    assert main("validate", *start, "--ckpt_path", "best") == 1
    assert "the data have 4 classes" in capsys.readouterr().err

"""Two gloo processes write one CSV; the command line tests of predict cover the rest."""

import csv
import subprocess
import sys

from PIL import Image

from tests.conftest import ROOT


def test_two_processes_write_every_file_once(tmp_path, demo, train):
    (tmp_path / "images").mkdir()
    for index in range(5):
        Image.effect_noise((60, 60), 30 + index).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no")
    short = ("--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "2")
    assert train("fit", "--config", demo, *short, cwd=tmp_path).returncode == 0
    command = [sys.executable, ROOT / "train.py", "predict", "--config", demo, "--data.predict_folder", "images",
               "--ckpt_path", "last",
               "--data.batch_size", "4", "--trainer.devices", "2", "--trainer.strategy", "ddp",
               "--trainer.accelerator", "cpu"]  # fmt: skip
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 3, result.stderr
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert [row["file"] for row in rows] == [f"images/{index}.png" for index in range(5)]
    assert result.stderr.count("unreadable, skipped: images/broken.png") == 1

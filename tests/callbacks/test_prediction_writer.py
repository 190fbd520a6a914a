"""The CSV file of predictions: of any model, on one and two processes, in place of an older file."""

import csv
import os
import resource
import subprocess
import sys

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from callbacks import PredictionWriter
from tests.callbacks.own_module import OwnModule, loader, trainer
from tests.conftest import ROOT

IMAGES = 6


def read(path):
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def predict(folder, predict_step, **arguments):
    """The writer after a prediction by a module with this `predict_step`."""

    class Predicting(OwnModule):
        pass

    Predicting.predict_step = predict_step
    writer = PredictionWriter(str(folder / "predictions.csv"))
    trainer(folder, writer).predict(Predicting(), **(arguments or {"dataloaders": loader(IMAGES)}))
    return writer


def test_logits_of_any_model_become_probabilities_of_numbered_classes(tmp_path):
    writer = predict(tmp_path, OwnModule.predict_step)
    rows = read(writer.output)
    network = OwnModule().eval()
    expected = torch.cat([network(batch["image"]) for batch in loader(IMAGES)]).softmax(-1)
    assert [row["file"] for row in rows] == [str(index) for index in range(IMAGES)]
    assert [int(row["class"]) for row in rows] == expected.argmax(-1).tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.amax(-1).tolist(), abs=1e-6)
    assert [len(row["top5"].split(";")) for row in rows] == [3] * IMAGES


def test_probabilities_stay_what_they_are(tmp_path):
    writer = predict(
        tmp_path, lambda self, batch, index: torch.tensor([[0.2, 0.7, 0.1]]).repeat(len(batch["image"]), 1)
    )
    assert {(row["class"], row["probability"]) for row in read(writer.output)} == {("1", "0.7")}


class Named(pl.LightningDataModule):
    class_names = ("cat", "dog", "cow")

    def predict_dataloader(self):
        return loader(IMAGES)


def test_the_names_of_the_data_module(tmp_path):
    writer = predict(tmp_path, lambda self, batch, index: torch.eye(3)[batch["label"]], datamodule=Named())
    assert [row["class"] for row in read(writer.output)] == ["cat", "dog", "cow"] * 2


class Endless(IterableDataset):
    """Images without indices."""

    def __iter__(self):
        for batch in loader(IMAGES):
            yield from batch["image"]


def test_images_without_indices_are_numbered(tmp_path):
    images = DataLoader(Endless(), batch_size=4)
    writer = predict(tmp_path, lambda self, batch, index: self(batch), dataloaders=images)
    assert [row["file"] for row in read(writer.output)] == [str(index) for index in range(IMAGES)]


def test_names_of_other_classes_are_not_used(tmp_path):
    writer = predict(tmp_path, lambda self, batch, index: torch.eye(7)[batch["label"]], datamodule=Named())
    assert [row["class"] for row in read(writer.output)] == ["0", "1", "2"] * 2


def test_more_than_ten_images_stay_in_order(tmp_path):
    writer = predict(tmp_path, OwnModule.predict_step, dataloaders=loader(12))
    assert [row["file"] for row in read(writer.output)] == [str(index) for index in range(12)]


@pytest.mark.parametrize("prediction", [["a", "list"], {"boxes": 1}, None, torch.zeros(4)])
def test_other_predictions_are_not_written(prediction, tmp_path):
    (tmp_path / "predictions.csv").write_text("earlier")
    with pytest.warns(UserWarning, match=r"predictions are not written to .*predictions.csv: a \w+ is neither"):
        writer = predict(tmp_path, lambda self, batch, index: prediction)
    assert not writer.written
    assert (tmp_path / "predictions.csv").read_text() == "earlier"


def files(name):
    return lambda self, batch, index: {
        "probabilities": torch.eye(3)[batch["label"]],
        "files": [name] * len(batch["label"]),
    }


def test_a_name_that_is_not_utf8_is_written_as_it_is(tmp_path):
    writer = predict(tmp_path, files(os.fsdecode(b"caf\xe9.jpg")))
    assert b"caf\xe9.jpg,0,1.0," in writer.output.read_bytes()


def test_an_older_file_survives_an_error(tmp_path):
    output = tmp_path / "predictions.csv"
    output.write_text("earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="could not be written: File too large; the previous file is kept"):
            predict(tmp_path, files("x" * 10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert output.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere.csv").write_text("earlier")
    (tmp_path / "predictions.csv").symlink_to("elsewhere.csv")
    predict(tmp_path, OwnModule.predict_step)
    assert (tmp_path / "predictions.csv").is_symlink()
    assert len(read(tmp_path / "elsewhere.csv")) == IMAGES


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "predictions.csv")
    with subprocess.Popen(["cat", tmp_path / "predictions.csv"], stdout=subprocess.PIPE, text=True) as reader:
        predict(tmp_path, OwnModule.predict_step)
        assert len(reader.communicate(timeout=30)[0].splitlines()) == 1 + IMAGES
    assert (tmp_path / "predictions.csv").is_fifo()


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        ("missing/p.csv", FileNotFoundError, "missing/p.csv: its folder does not exist"),
        (".", ValueError, "is a folder: give a file"),
    ],
)
def test_what_cannot_be_written_is_known_before_the_work(output, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        trainer(tmp_path, PredictionWriter(output)).predict(OwnModule(), loader(IMAGES))


@pytest.mark.slow
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
    assert [row["file"] for row in read(tmp_path / "predictions.csv")] == [f"images/{index}.png" for index in range(5)]
    assert result.stderr.count("unreadable, skipped: images/broken.png") == 1

"""The command line in this process: what it accepts, and what it refuses."""

import csv
import os
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from tests.app.cli.parts import SHORT, only_error


def read_csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "--config", "nope.yaml"), r"config: File does not exist.*nope\.yaml"),
        (("fit",), "fit.model: give a configuration"),
        ((), "expected .subcommand. to be one of"),
        (("fit", "--config", "DEMO", "--model.nope", 3), "'nope' is not accepted"),
        (("fit", "--config", "DEMO", "--trainer.nope", 3), r"trainer\.nope"),
        (("fit", "--config", "DEMO", "--model.class_path", "Nope"), "unknown class 'Nope'"),
        (("fit", "--config", "DEMO", "--data", "Nope"), "unknown class 'Nope'"),
        (("fit", "--config", "DEMO", "--model.meta_layer", "nope"), "unknown meta_layer 'nope': choose one of gap"),
        (("fit", "--config", "DEMO", "--model.backbone", "nope"), "unknown backbone 'nope': choose one of"),
        (("fit", "--config", "DEMO", "--model.dim", 65), "dim must lie between 2 and the 64 channels"),
        (("fit", "--config", "DEMO", "--model.dim", "many"), "dim: expected int or list, got many"),
        (("fit", "--config", "DEMO", "--model.meta_options.degree", 3), "isqrt-cov takes no option 'degree'"),
        (("fit", "--config", "DEMO", "--model.num_classes", 7), "the data have 6 classes, but model.num_classes is 7"),
        (("fit", "--config", "DEMO", "--data.batch_size", 0), "data.batch_size must be at least 1"),
        (("fit", "--config", "DEMO", "--model.num_classes", "null", "--data.batch_size", 0), "error: data.batch_size"),
        (("fit", "--config", "DEMO", "--data.batch_size", 100000), "fewer than data.batch_size"),
        (("test", "--config", "DEMO", "--ckpt_path", "nope.ckpt"), "--ckpt_path nope.ckpt does not exist"),
        (("test", "--config", "DEMO", "--ckpt_path", "last"), "no checkpoint below runs/demo"),
        (("predict", "--config", "DEMO", "--data.predict_folder", "."), "predict needs a trained network: --ckpt_path"),
        (("fit", "--config", "DEMO", "--model.meta_options.iterations", "many"), "iterations must be a whole number"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(main, demo, capsys, arguments, message):
    status = main(*(demo if argument == "DEMO" else argument for argument in arguments))
    error = only_error(capsys)
    assert status in (1, 2)
    assert re.search(message, error), error
    assert len(error) < 400
    assert "Traceback" not in error


def test_the_traceback_on_demand(main, demo, monkeypatch):
    monkeypatch.setenv("APP_TRACEBACK", "1")
    with pytest.raises(ValueError, match="dim must lie between"):
        main("fit", "--config", demo, "--model.dim", 65)


def test_help_comes_from_the_docstrings(main, capsys):
    assert main("fit", "--model.help", "Classifier") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "learning rate of the linear classifier; null: that of the optimizer." in text
    assert "default: isqrt-cov" in text
    assert main("fit", "--data.help", "Textures") == 0
    assert "side of a patch in pixels" in " ".join(capsys.readouterr().out.split())


def test_print_config_can_be_run(main, demo, capsys, tmp_path):
    assert main("fit", "--config", demo, "--print_config") == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert main("fit", "--config", "printed.yaml", "--trainer.fast_dev_run", "true") == 0


def test_optimizer_and_schedule_can_be_replaced(main, demo):
    optimizer = ("--model.optimizer", "Adam", "--model.optimizer.lr", 0.002)
    schedule = ("--model.lr_scheduler", "CosineAnnealingLR", "--model.lr_scheduler.T_max", 5)
    assert main("fit", "--config", demo, *optimizer, *schedule, "--trainer.max_epochs", 1, *SHORT) == 0
    checkpoint = torch.load("runs/demo/version_0/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["training_setup"]["optimizer"] == "Adam"
    assert checkpoint["lr_schedulers"][0]["T_max"] == 5


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_of_one_trains(main, demo, batch):
    assert main("fit", "--config", demo, "--data.batch_size", batch, "--trainer.max_epochs", 1, *SHORT) == 0


def test_the_last_line_and_the_files(main, demo, capsys):
    assert main("fit", "--config", demo, "--trainer.max_epochs", 1, *SHORT) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    match = re.fullmatch(r"validation top-1 (\d\.\d{4}) \(best \1\); checkpoint (\S+); log (\S+)", last)
    assert match
    checkpoint = torch.load(match[2], weights_only=True)
    assert checkpoint["epoch"] == 0
    config = yaml.safe_load(Path(match[3], "config.yaml").read_text())
    assert config["model"]["init_args"]["meta_layer"] == "isqrt-cov"


def test_event_files_hold_the_fixed_tags(main, demo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main("fit", "--config", demo, "--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 1, *SHORT) == 0
    assert main("test", "--config", demo, "--ckpt_path", "last", "--trainer.limit_test_batches", 1) == 0
    events = EventAccumulator("runs/demo/version_0")
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "test/loss", "test/top1"} <= tags
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert len(events.Scalars("val/top1")) == 2
    assert all(0 <= event.value <= 1 for event in events.Scalars("val/top1"))


def test_predict_writes_the_csv_and_names_what_it_could_not_read(main, demo, capsys, trained, tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("b.png", "a.jpg"):
        Image.effect_noise((70, 60), 40).save(tmp_path / "images" / name)
    predict = ("predict", "--config", demo, "--ckpt_path", "best", "--data.predict_folder", "images")
    assert main(*predict) == 0
    rows = read_csv("predictions.csv")
    assert [row["file"] for row in rows] == ["images/a.jpg", "images/b.png"]
    for row in rows:
        best = [entry.split(":") for entry in row["top5"].split(";")]
        assert len(best) == 5
        assert (row["class"], float(row["probability"])) == (best[0][0], float(best[0][1]))
        assert [float(p) for _, p in best] == sorted((float(p) for _, p in best), reverse=True)

    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    assert main(*predict, "--predictions.output", "again.csv") == 3
    assert "unreadable, skipped: images/broken.jpg" in capsys.readouterr().err
    assert len(read_csv("again.csv")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data.predict_folder", "nope"), "data.predict_folder nope is not a folder"),
        ((), "--data.predict_folder FOLDER"),
        (("--data.predict_folder", ".", "--predictions.output", "nope/p.csv"), "nope/p.csv: its folder does not exist"),
        (("--data.predict_folder", ".", "--predictions.output", "."), "predictions.output . is a folder"),
    ],
)
def test_predictions_that_cannot_be_made(main, demo, capsys, trained, arguments, message):
    assert main("predict", "--config", demo, "--ckpt_path", "last", *arguments) == 1
    assert message in only_error(capsys)


def test_divergence_of_average_pooling(main, demo, capsys):
    diverging = ("--model.meta_layer", "gap", "--model.optimizer.lr", 1e30, "--trainer.max_epochs", 2)
    assert main("fit", "--config", demo, *diverging, *SHORT) == 1
    assert re.search(r"(train|val)/loss is (nan|inf)", only_error(capsys))


def test_a_checkpoint_by_its_absolute_path_logs_in_its_run(main, demo, trained):
    path = (trained / "best.ckpt").absolute()
    assert main("test", "--config", demo, "--ckpt_path", path, "--trainer.limit_test_batches", 2) == 0
    assert [folder.name for folder in Path("runs/demo").iterdir()] == ["version_0"]


def test_only_unreadable_images(main, demo, trained, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    assert main("predict", "--config", demo, "--ckpt_path", "best", "--data.predict_folder", "images") == 3
    assert Path("predictions.csv").read_text().splitlines() == ["file,class,probability,top5"]


def test_without_a_logger(main, demo, capsys):
    assert main("fit", "--config", demo, "--trainer.logger", "false", "--trainer.max_epochs", 1, *SHORT) == 0
    assert re.fullmatch(
        r"validation top-1 .*; checkpoint \S+best.ckpt.*", capsys.readouterr().out.strip().splitlines()[-1]
    )
    test = ("test", "--config", demo, "--trainer.logger", "false", "--ckpt_path", "last")
    assert main(*test, "--trainer.limit_test_batches", 1) == 0


def test_the_last_line_where_nothing_is_validated(main, demo, capsys):
    never = ("--config", demo, *SHORT, "--trainer.limit_val_batches", 0)

    def last_line(*arguments):
        assert main("fit", *never, *arguments) == 0
        return capsys.readouterr().out.strip().splitlines()[-1]

    assert last_line("--trainer.max_epochs", 1).startswith("1 epochs done, no validation in this run")
    # it is finished already
    again = last_line("--trainer.max_epochs", 1, "--ckpt_path", "last")
    assert again.startswith("1 epochs done, no validation in this run")
    assert last_line("--trainer.max_epochs", 0) == "no epoch was finished (max_epochs 0)"


def test_a_newer_run_without_a_save_is_named(main, demo, trained, recwarn):
    newer = Path("runs/demo/version_1/config.yaml")
    newer.parent.mkdir()
    newer.touch()
    for later in (-60, 60):
        time = (trained / "last.ckpt").stat().st_mtime + later
        os.utime(newer, (time, time))
        recwarn.clear()
        assert main("fit", "--config", demo, "--ckpt_path", "last", "--trainer.max_epochs", 1, *SHORT) == 0
        warned = [
            str(w.message) for w in recwarn if "has no last.ckpt: resuming from runs/demo/version_0" in str(w.message)
        ]
        assert len(warned) == (later > 0)


@pytest.mark.parametrize("tasks", [{"NTASKS": "2", "NTASKS_PER_NODE": "2"}, {"NTASKS": "2"}])
def test_an_allocation_without_srun(main, demo, capsys, monkeypatch, tasks):
    for name, value in {"JOB_NAME": "mine", "JOB_ID": "1", **tasks}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main("fit", "--config", demo, "--trainer.accelerator", "cpu", "--trainer.devices", 2) == 1
    assert "the command was not started by srun: use srun python train.py" in only_error(capsys)

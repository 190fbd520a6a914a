"""The command line in this process: what it accepts, what it refuses, and what wins."""

import csv
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from app.cli.hyperparameters import read_run

SHORT = (
    "--trainer.limit_train_batches",
    "2",
    "--trainer.limit_val_batches",
    "2",
    "--trainer.enable_progress_bar",
    "false",
)


def only_error(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def meta_layer(config):
    return yaml.safe_load(Path(config).read_text())["model"]["init_args"]["meta_layer"]


def read_csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(main, demo, capsys):
    """A run of one short epoch in the current folder; its checkpoints."""
    assert main("fit", "--config", demo, "--trainer.max_epochs", 1, *SHORT) == 0
    capsys.readouterr()
    return Path("runs/demo/version_0/checkpoints")


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
        (("fit", "--config", "DEMO", "--model.dim", "many"), "dim: expected int, expected list, got many"),
        (("fit", "--config", "DEMO", "--model.meta_options.degree", 3), "isqrt-cov takes no option 'degree'"),
        (("fit", "--config", "DEMO", "--model.num_classes", 7), "the data has 6 classes, model.num_classes is 7"),
        (("fit", "--config", "DEMO", "--data.batch_size", 0), "data.batch_size must be at least 1"),
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


def test_an_unknown_key_in_the_file(main, demo, capsys, tmp_path):
    config = yaml.safe_load(demo.read_text())
    config["model"]["init_args"]["pooling"] = "max"
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(config))
    assert main("fit", "--config", "bad.yaml") == 2
    assert "pooling" in only_error(capsys)


def test_a_broken_file(main, capsys, tmp_path):
    (tmp_path / "bad.yaml").write_text("model: [unclosed")
    assert main("fit", "--config", "bad.yaml") == 2
    assert "bad.yaml" in only_error(capsys)


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


def test_the_checkpoint_wins_over_the_file_and_the_command_line_over_both(main, demo, capsys):
    assert main("fit", "--config", demo, "--model.meta_layer", "mpn-cov", "--trainer.max_epochs", 1, *SHORT) == 0
    test = ("test", "--config", demo, "--ckpt_path", "last", "--trainer.limit_test_batches", 1)
    capsys.readouterr()

    assert main(*test) == 0
    assert meta_layer("runs/demo/version_0/config_test.yaml") == "mpn-cov"

    assert main(*test, "--model.meta_layer", "svd-exact") == 0
    assert meta_layer("runs/demo/version_0/config_test.yaml") == "svd-exact"
    # fit's own record is not overwritten by tests
    assert meta_layer("runs/demo/version_0/config.yaml") == "mpn-cov"


def test_a_checkpoint_of_another_shape_is_one_line(main, demo, capsys, trained):
    assert main("test", "--config", demo, "--ckpt_path", "last", "--model.dim", 16) == 1
    error = only_error(capsys)
    assert "does not fit the configured model: pooling.reduction.0.weight is [32, 64, 1, 1] there" in error


def test_a_checkpoint_of_another_model(main, demo, capsys, trained):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["_class_path"] = "somewhere.Detector"
    torch.save(checkpoint, "other.ckpt")
    assert main("test", "--config", demo, "--ckpt_path", "other.ckpt") == 1
    assert "holds a somewhere.Detector" in only_error(capsys)


class Hostile:
    def __reduce__(self):
        return open, ("executed", "w")


def test_damaged_and_foreign_checkpoints(main, demo, capsys, trained, tmp_path):
    last = torch.load(trained / "last.ckpt", weights_only=True)
    whole = (trained / "last.ckpt").read_bytes()
    place = whole.find(last["state_dict"]["classifier.weight"].numpy().tobytes())
    one_bit = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    unreadable, foreign = "is no checkpoint that can be read: ", "is no checkpoint of this program: "
    for content, message in (
        (whole[:5000], unreadable),
        (one_bit, unreadable),
        (b"no checkpoint", unreadable),
        ({"state_dict": Hostile()}, unreadable),
        ({"weight": torch.zeros(1)}, foreign + "it holds no state_dict"),
        (last | {"loops": {}}, foreign + "KeyError 'test_loop' while it was restored"),
    ):
        if isinstance(content, bytes):
            Path("bad.ckpt").write_bytes(content)
        else:
            torch.save(content, "bad.ckpt", pickle_protocol=4 if message == unreadable else 2)
        assert main("test", "--config", demo, "--ckpt_path", "bad.ckpt") == 1
        text = capsys.readouterr().err
        assert text.startswith(f"error: --ckpt_path bad.ckpt {message}")
        assert text.count("\n") == 1
    assert not (tmp_path / "executed").exists()


GOOD = {
    "state_dict": {}, "hyper_parameters": {"_class_path": "Classifier"}, "pytorch-lightning_version": "2.6",
    "loops": {}, "optimizer_states": [], "lr_schedulers": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fitting", "message"),
    [
        ({}, True, None),
        ({"loops": None, "optimizer_states": None}, False, None),
        ({"loops": None}, True, "it holds no loops; to start from its weights, --model.init_from"),
        ({"optimizer_states": None}, True, "it holds no optimizer_states; to start from its weights"),
        ({"hyper_parameters": None}, False, "it holds no hyper_parameters; to start from its weights"),
        ({"hyper_parameters": [1]}, False, "hyper_parameters is a list, not a dict"),
        ({"hyper_parameters": {"_class_path": 3}}, False, "it names no model"),
        ({"state_dict": [1]}, False, "state_dict is a list, not a dict"),
        ({"pytorch-lightning_version": None}, False, "it holds no pytorch-lightning_version"),
    ],
)
def test_what_a_checkpoint_holds(tmp_path, change, fitting, message):
    path = str(tmp_path / "a.ckpt")
    torch.save({key: value for key, value in {**GOOD, **change}.items() if value is not None}, path)
    refused = pytest.raises(ValueError, match=f"is no checkpoint of this program: {message}")
    with refused if message else nullcontext():
        read_run(path, fitting)


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
        (("--data.predict_folder", "nope"), "data.predict_folder nope is no folder"),
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


def test_options_of_the_layer_follow_the_layer(main, demo):
    seven = ("--model.meta_options.iterations", 7, "--trainer.max_epochs", 1)
    assert main("fit", "--config", demo, *seven, *SHORT) == 0
    test = ("test", "--config", demo, "--ckpt_path", "last", "--trainer.limit_test_batches", 2)
    assert main(*test) == 0
    config = yaml.safe_load(Path("runs/demo/version_0/config_test.yaml").read_text())
    assert config["model"]["init_args"]["meta_options"] == {"iterations": 7}
    assert main(*test, "--model.meta_layer", "svd-pade") == 0


def test_a_whole_model_beside_a_checkpoint_is_refused(main, demo, capsys, trained):
    assert main("test", "--config", demo, "--ckpt_path", "last", "--model", '{"class_path": "Classifier"}') == 1
    assert "give single values of the model" in only_error(capsys)


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

    assert last_line("--trainer.max_epochs", 1).startswith("1 epochs done, no validation now")
    # it is finished already
    again = last_line("--trainer.max_epochs", 1, "--ckpt_path", "last")
    assert again.startswith("1 epochs done, no validation now")
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
            str(w.message) for w in recwarn if "has no last.ckpt: going on with runs/demo/version_0" in str(w.message)
        ]
        assert len(warned) == (later > 0)


@pytest.mark.parametrize("tasks", [{"NTASKS": "2", "NTASKS_PER_NODE": "2"}, {"NTASKS": "2"}])
def test_an_allocation_without_srun(main, demo, capsys, monkeypatch, tasks):
    for name, value in {"JOB_NAME": "mine", "JOB_ID": "1", **tasks}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main("fit", "--config", demo, "--trainer.accelerator", "cpu", "--trainer.devices", 2) == 1
    assert "the command was not started by srun: use srun python train.py" in only_error(capsys)

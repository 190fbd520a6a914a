"""Logs and configurations of a run stay when it is resumed or evaluated."""

import csv
import resource
from pathlib import Path

import yaml

from tests.app.cli.parts import SHORT, only_error

CSV = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "runs", "--trainer.logger.name", "demo")
TEST = ("--ckpt_path", "best", "--trainer.limit_test_batches", 1)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_log_stays(main, demo):
    log = Path("runs/demo/version_0/metrics.csv")
    assert main("fit", "--config", demo, *CSV, "--trainer.max_epochs", 1, *SHORT) == 0
    first = rows(log)
    # A column that Lightning's logger does not know makes it write the file anew.
    monitor = ("--trainer.callbacks+", "ConditionNumberMonitor", "--trainer.log_every_n_steps", 1)
    resume = ("--ckpt_path", "last", "--trainer.max_epochs", 2, *monitor)
    assert main("fit", "--config", demo, *CSV, *resume, *SHORT) == 0
    resumed = rows(log)
    assert [row["val/top1"] for row in resumed[: len(first)]] == [row["val/top1"] for row in first]
    assert {row["epoch"] for row in resumed if row["val/top1"]} == {"0", "1"}
    assert any(row["covariance/condition_number"] for row in resumed)
    content = log.read_bytes()
    for _ in range(2):
        assert main("test", "--config", demo, *CSV, *TEST) == 0
    assert log.read_bytes() == content
    assert len([row for row in rows(log.parent / "metrics_test.csv") if row["test/top1"]]) == 2


def test_several_loggers_stay_in_the_folder_of_the_run(main, demo, tmp_path):
    both = {"trainer": {"logger": [{"class_path": name, "init_args": {"save_dir": "runs", "name": "demo"}}
                                   for name in ("TensorBoardLogger", "CSVLogger")]}}  # fmt: skip
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(both))
    fit = ("fit", "--config", demo, "--config", "both.yaml", *SHORT)
    assert main(*fit, "--trainer.max_epochs", 1) == 0
    assert main(*fit, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    assert main("test", "--config", demo, "--config", "both.yaml", *TEST) == 0
    assert [folder.name for folder in Path("runs/demo").iterdir()] == ["version_0"]
    assert {row["epoch"] for row in rows("runs/demo/version_0/metrics.csv") if row["val/top1"]} == {"0", "1"}


def test_the_users_configuration_is_never_replaced(main, demo):
    own = Path("config.yaml")
    own.write_text(f"# my notes\n{demo.read_text()}")
    content = own.read_text()
    short = ("--config", own, "--trainer.max_epochs", 1, *SHORT)
    assert main("fit", *short, "--trainer.logger", "false") == 0
    assert own.read_text() == content
    assert yaml.safe_load(Path("checkpoints/config.yaml").read_text())["trainer"]["max_epochs"] == 1
    assert main("test", "--config", own, "--trainer.logger", "false", *TEST) == 0
    assert own.read_text() == content


def test_a_log_in_the_folder_of_the_users_configuration(main, demo, capsys):
    own = Path("config.yaml")
    own.write_text(demo.read_text())
    here = ("--trainer.logger.save_dir", ".", "--trainer.logger.name", "", "--trainer.logger.version", "")
    assert main("fit", "--config", own, *here, "--trainer.max_epochs", 1, *SHORT) == 1
    assert "config.yaml is given by --config, and would be replaced" in only_error(capsys)
    assert own.read_text() == demo.read_text()


def test_a_run_may_be_resumed_by_its_own_configuration(main, demo, trained):
    config = trained.parent / "config.yaml"
    assert main("fit", "--config", config, "--ckpt_path", "last", "--trainer.max_epochs", 2, *SHORT) == 0
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 2


def test_a_configuration_stays_whole_on_a_full_disk(main, demo, trained, capsys):
    config = trained.parent / "config.yaml"
    before = config.read_text()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        assert main("fit", "--config", demo, "--ckpt_path", "last", "--trainer.max_epochs", 2, *SHORT) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "version_0/config.yaml cannot be written: File too large; the previous file is kept" in only_error(capsys)
    assert config.read_text() == before


def test_a_configuration_that_is_not_utf8_is_named(main, demo, capsys):
    Path("mine.yaml").write_bytes(b"trainer:\n  max_epochs: 1  # caf\xe9\n")
    assert main("fit", "--config", demo, "--config", "mine.yaml") == 1
    assert "mine.yaml is not UTF-8 text: byte 0xe9 in line 2" in only_error(capsys)

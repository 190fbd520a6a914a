"""The help of the command line, and its errors: one line that names the nearest flag or class."""

import re
from pathlib import Path

import pytest
import yaml

from app.cli.parser import explain
from tests.app.cli.parts import only_error

DEMO = ("fit", "--config", "DEMO")


def test_help_says_what_the_program_is_and_shows_commands(main, capsys):
    assert main("--help") == 0
    text = capsys.readouterr().out
    assert "global covariance pooling" in text
    assert "  python train.py fit --config configs/demo.yaml\n" in text
    for command in re.findall(r"python train\.py (.*)", text):
        assert command.split()[0] in ("fit", "test", "predict")
    assert "Lightning Trainer command line tool" not in text
    assert re.search(r"predict +Classify the images of a folder", text)


def test_help_of_a_subcommand_describes_it(main, capsys):
    assert main("test", "--help") == 0
    assert "\n\nEvaluate a network on the test images.\n\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*DEMO, "--model.dimm", 3), "Option 'dimm' is not accepted: did you mean dim?"),
        ((*DEMO, "--data.batchsize", 3), "Option 'batchsize' is not accepted: did you mean batch_size?"),
        ((*DEMO, "--ckpt_pth", "last"), "unrecognized arguments: --ckpt_pth last: did you mean ckpt_path?"),
        ((*DEMO, "--trainer.max_epoches", 3), "did you mean trainer.max_epochs?"),
        ((*DEMO, "--model", "Clasifier"), "unknown class 'Clasifier': did you mean Classifier?"),
        ((*DEMO, "--data", "textures"), "unknown class 'textures': did you mean Textures?"),
        ((*DEMO, "--model.optimizer", "AdamV"), "unknown class 'AdamV': did you mean Adam"),
        ((*DEMO, "--model.lr_scheduler", "CosineAnealingLR"), "did you mean CosineAnnealingLR?"),
        ((*DEMO, "--trainer.callbacks+", "HybridProtocl"), "did you mean HybridProtocol?"),
        ((*DEMO, "--trainer.logger", "TensorboardLogger"), "did you mean TensorBoardLogger?"),
        ((*DEMO, "--model", "Qqqq"), "unknown class 'Qqqq': give the name of a class or its import path"),
        ((*DEMO, "--trainer.max_epochs", "many"), "--trainer.max_epochs: expected int, got many"),
        ((*DEMO, "--trainer.callbacks+", "LastCheckpoint"), "a callback is in trainer.callbacks twice: give it once"),
    ],
)
def test_the_nearest_name_is_suggested(main, demo, capsys, arguments, message):
    assert main(*(demo if argument == "DEMO" else argument for argument in arguments)) in (1, 2)
    assert message in only_error(capsys)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("dim", "dmi", "Option 'dmi' is not accepted: did you mean dim?"),
        ("max_epochs", "max_epoch", "Subcommand 'fit' does not accept option 'trainer.max_epoch': did you mean train"),
        ("Textures", "Texture", "unknown class 'Texture': did you mean Textures?"),
        ("class_path: SGD", "class_path: SDG", "unknown class 'SDG': did you mean SGD?"),
    ],
)
def test_the_nearest_name_for_a_file(main, demo, capsys, before, after, message):
    Path("bad.yaml").write_text(demo.read_text().replace(before, after))
    assert main("fit", "--config", "bad.yaml") == 2
    assert message in only_error(capsys)


def test_an_unknown_key_in_the_file(main, demo, capsys):
    config = yaml.safe_load(demo.read_text())
    config["model"]["init_args"]["pooling"] = "max"
    Path("bad.yaml").write_text(yaml.safe_dump(config))
    assert main("fit", "--config", "bad.yaml") == 2
    assert "pooling" in only_error(capsys)


def test_a_file_that_is_not_yaml(main, capsys):
    Path("bad.yaml").write_text("model: [unclosed")
    assert main("fit", "--config", "bad.yaml") == 2
    assert "bad.yaml is not valid YAML: Problems parsing config" in only_error(capsys)


def test_a_message_without_a_rule_is_one_line():
    assert explain("something\n  else", [], []) == "something else"

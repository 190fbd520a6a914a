"""The page "Add your own": every file on it is written, and every command on it is run."""

import re
import shlex
import sys

import pytest
import torch

from app.bench import __main__ as bench
from app.spectral import METHODS
from tests.conftest import ROOT

PAGE = (ROOT / "configs" / "extend" / "README.md").read_text(encoding="utf-8")

SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

SHORT = (
    "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1",
    "--trainer.enable_progress_bar", "false", "--trainer.num_sanity_val_steps", "0", "--trainer.accelerator", "cpu",
)  # fmt: skip


def blocks(section, language):
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def data(tmp_path, mini):
    """The image files that the examples name: class folders, and images whose name begins with their class."""
    for split, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "zebra")):
            for number in range(count):
                mini.jpeg(tmp_path / "photographs" / split / name / f"{number}.jpg", 60 * label)
                mini.jpeg(tmp_path / "images" / split / f"{name}_{number}.jpg", 60 * label)


@pytest.fixture
def page(tmp_path, monkeypatch, main, data):
    """Writes the files of a section into the current folder, and runs its commands there."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(METHODS)

    def run(section):
        for language in ("python", "yaml"):
            for block in blocks(section, language):
                name = re.match(r"# (\S+)\n", block)[1]
                (tmp_path / name).write_text(block)
                assert len(block.splitlines()) <= 30
        for command in "".join(blocks(section, "sh")).splitlines():
            python, program, *arguments = shlex.split(command)
            assert python == "python"
            if program == "train.py":
                assert main(*arguments, *SHORT) == 0, command
            else:
                assert (program, arguments[0]) == ("-m", "app.bench")
                bench.main(arguments[1:])

    modules = set(sys.modules)
    yield run
    METHODS.clear()
    METHODS.update(before)
    for name in set(sys.modules) - modules:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_of_the_page(title, page, capsys):
    page(SECTIONS[title])
    assert "error" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_rule_on_the_page_is_what_was_trained(page, capsys):
    page(SECTIONS["A gradient rule"])
    assert "| svd-damped" in capsys.readouterr().out
    stored = [torch.load(f"runs/demo/version_{k}/checkpoints/last.ckpt", weights_only=True) for k in range(2)]
    by_name, by_class = (checkpoint["hyper_parameters"]["meta_layer"] for checkpoint in stored)
    assert by_name == "svd-damped"
    assert by_class["class_path"] == "damped.SVDDamped"
    # the same object by both ways, so the same weights: the same computation on the same layout
    states = [checkpoint["state_dict"] for checkpoint in stored]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

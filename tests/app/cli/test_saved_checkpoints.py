"""Where ``best`` and ``last`` are found, whatever the checkpoint options say, and what is an error."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.cli.saved_checkpoints import checkpoints_in, find_last
from tests.app.cli.parts import SHORT, only_error
from tests.conftest import ROOT

TEST = ("--trainer.limit_test_batches", 1)


@pytest.mark.parametrize("name", ["{epoch}", "net-{epoch}-{val/top1:.2f}", "mine"])
def test_best_is_found_under_any_name(main, demo, capsys, caplog, name):
    caplog.set_level("INFO")
    named = ("--checkpoint.filename", name, "--checkpoint.save_top_k", 2)
    assert main("fit", "--config", demo, "--trainer.max_epochs", 2, *named, *SHORT) == 0
    best = capsys.readouterr().out.splitlines()[-1].split("checkpoint ")[1].split(";")[0]
    for options in (named, ()):  # the name is not needed again
        caplog.clear()
        assert main("test", "--config", demo, "--ckpt_path", "best", *TEST, *options) == 0
        assert f"checkpoint at {best}" in caplog.text
    assert [folder.name for folder in Path("runs/demo").iterdir()] == ["version_0"]


def test_best_in_a_given_folder(main, demo, capsys):
    folder = ("--checkpoint.dirpath", "elsewhere")
    assert main("fit", "--config", demo, "--trainer.max_epochs", 1, *folder, *SHORT) == 0
    assert main("test", "--config", demo, "--ckpt_path", "best", *folder, *TEST) == 0
    assert main("test", "--config", demo, "--ckpt_path", "best", *TEST) == 1
    assert "elsewhere/best.ckpt: give that path, or the --checkpoint.dirpath of the run" in only_error(capsys)


@pytest.mark.parametrize("value", ["true", "null"])
def test_the_default_logger(main, demo, value):
    logger = ("--trainer.logger", value)
    assert main("fit", "--config", demo, *logger, "--trainer.max_epochs", 1, *SHORT) == 0
    assert main("fit", "--config", demo, *logger, "--trainer.max_epochs", 2, "--ckpt_path", "last", *SHORT) == 0
    saved = torch.load("lightning_logs/version_0/checkpoints/last.ckpt", weights_only=True)
    assert saved["epoch"] == 1


def test_nothing_there(tmp_path):
    assert checkpoints_in(tmp_path / "nothing") == []
    (tmp_path / "file").touch()
    assert checkpoints_in(tmp_path / "file" / "checkpoints") == []
    assert find_last([tmp_path / "nothing"]) is None


@pytest.mark.parametrize("where", ["runs", "runs/demo", "runs/demo/version_0", "runs/demo/version_0/checkpoints"])
@pytest.mark.parametrize("kind", ["link to nothing", "link to itself"])
def test_a_folder_that_cannot_be_searched_is_no_empty_folder(main, demo, trained, capsys, where, kind):
    target = "gone" if kind == "link to nothing" else Path(where).name
    shutil.rmtree(where)
    Path(where).symlink_to(target)
    assert main("fit", "--config", demo, "--ckpt_path", "last", "--trainer.max_epochs", 1, *SHORT) == 1
    error = only_error(capsys)
    assert f"{where} is a link to a folder that does not exist" in error or "symbolic links" in error


def test_a_checkpoint_that_is_a_link_to_nothing(main, demo, trained, capsys):
    (trained / "last.ckpt").unlink()
    (trained / "last.ckpt").symlink_to("gone")
    assert main("fit", "--config", demo, "--ckpt_path", "last", "--trainer.max_epochs", 1, *SHORT) == 1
    assert "last.ckpt cannot be read: No such file or directory" in only_error(capsys)


FIND = """
import sys
from pathlib import Path
from app.cli.saved_checkpoints import find_last
print(find_last([Path(sys.argv[1])]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_folder_without_permission(tmp_path, mode):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "last.ckpt").touch()
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp") and path.is_relative_to("/tmp"):
            path.chmod(0o755)
    command = [sys.executable, "-c", FIND, str(folder)]
    if shutil.which("setpriv") and not subprocess.run(["setpriv", "--reuid=65534", "true"], check=False).returncode:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    folder.chmod(mode)
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o755)
    if "app" not in run.stderr and "ModuleNotFoundError" in run.stderr:
        pytest.skip("another user may not read this checkout")
    assert run.returncode == 1
    assert "Permission denied" in run.stderr.splitlines()[-1]
    assert "checkpoints" in run.stderr.splitlines()[-1]

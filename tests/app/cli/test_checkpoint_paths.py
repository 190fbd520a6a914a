"""The best score belongs to the run, wherever its folder is, and paths in a checkpoint lead nowhere else."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from app.cli.checkpoint_paths import state_in_folder
from tests.app.cli.parts import SHORT

UNBEATABLE = 2.0


def give_a_score_that_no_epoch_beats(path):
    """Change the score of the best checkpoint, as if the epochs to come were worse."""
    checkpoint = torch.load(path, weights_only=True)
    for key, state in checkpoint["callbacks"].items():
        if "best_k_models" in state and "val/top1" in key:
            score = torch.tensor(UNBEATABLE)
            state |= {"best_model_score": score, "kth_value": score}
            state["best_k_models"] = dict.fromkeys(state["best_k_models"], score)
    torch.save(checkpoint, path)


def as_it_is(runs):
    return runs


def absolute(runs):
    return runs.absolute()


def moved(runs):
    return Path(shutil.move(runs, "moved"))


def linked(runs):
    Path("link").symlink_to(runs)
    return Path("link")


def copied(runs):
    shutil.copytree(runs, "copy")
    shutil.rmtree(runs)
    return Path("copy")


@pytest.mark.parametrize("place", [as_it_is, absolute, moved, linked, copied])
def test_the_best_checkpoint_of_a_run_stays(main, demo, trained, capsys, place):
    give_a_score_that_no_epoch_beats(trained / "last.ckpt")
    before = (trained / "best.ckpt").read_bytes()
    runs = place(Path("runs"))
    resume = ("--ckpt_path", "last", "--trainer.max_epochs", 2, "--trainer.logger.save_dir", runs)
    assert main("fit", "--config", demo, *resume, *SHORT) == 0
    assert (runs / "demo/version_0/checkpoints/best.ckpt").read_bytes() == before
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert f"(best {UNBEATABLE:.4f}); checkpoint " in last_line


def test_a_second_checkpoint_callback_keeps_its_files_too(main, demo):
    second = ("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.monitor", "val/loss",
              "--trainer.callbacks.filename", "{epoch}")  # fmt: skip
    assert main("fit", "--config", demo, "--trainer.max_epochs", 1, *second, *SHORT) == 0
    shutil.move("runs", "moved")
    resume = ("--ckpt_path", "last", "--trainer.max_epochs", 3, "--trainer.logger.save_dir", "moved")
    assert main("fit", "--config", demo, *resume, *second, *SHORT) == 0
    names = {path.name for path in Path("moved/demo/version_0/checkpoints").iterdir()}
    assert len(names) == 3  # one of each: the file of the first epoch is kept, or removed for a better one
    assert names >= {"best.ckpt", "last.ckpt"}


def state_of(folder, best, **models):
    scores = {str(path): torch.tensor(score) for path, score in models.items()}
    return {"dirpath": str(folder), "best_model_path": str(best), "best_k_models": scores, "last_model_path": ""}


@pytest.fixture
def callback(tmp_path):
    (tmp_path / "new").mkdir()
    return ModelCheckpoint(tmp_path / "new", monitor="val/top1", mode="max", save_top_k=3)


@pytest.mark.parametrize(
    "path",
    [
        "/home/user", "/home/user/x.ckpt", "local:///home/user", "https://host/x.ckpt", "old/../../x.ckpt", "..", ".",
        "", "/", "old/gone.ckpt", "a\0b", 3, None,
    ],
)  # fmt: skip
def test_no_other_path_is_taken_over(callback, path):
    state = {"dirpath": "old", "best_model_path": path, "best_k_models": {path: torch.tensor(1.0)}}
    result = state_in_folder({**state, "last_model_path": path, "kth_best_model_path": path}, callback)
    assert result["best_k_models"] == {}
    for key in ("best_model_path", "last_model_path", "kth_best_model_path"):
        assert result[key] == ""
    callback.load_state_dict(result)
    assert callback.best_model_score is None


def test_scores_are_ordered_anew(callback):
    scores = {"a.ckpt": 0.5, "b.ckpt": 0.9, "c.ckpt": 0.7, "gone.ckpt": 1.0}
    for name in ("a.ckpt", "b.ckpt", "c.ckpt"):
        Path(callback.dirpath, name).touch()
    state = state_of("/old", "/old/gone.ckpt", **{f"/old/{name}": score for name, score in scores.items()})
    callback.load_state_dict(state_in_folder(state, callback))
    assert os.path.basename(callback.best_model_path) == "b.ckpt"  # noqa: PTH119
    assert callback.best_model_score == torch.tensor(0.9)
    assert os.path.basename(callback.kth_best_model_path) == "a.ckpt"  # noqa: PTH119
    assert len(callback.best_k_models) == 3


@pytest.mark.parametrize("score", [torch.tensor(torch.nan), torch.zeros(2), "1", None])
def test_what_is_no_score_is_left_out(callback, score):
    Path(callback.dirpath, "a.ckpt").touch()
    state = {"dirpath": "/old", "best_k_models": {"/old/a.ckpt": score}}
    assert state_in_folder(state, callback)["best_k_models"] == {}

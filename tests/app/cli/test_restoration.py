"""Checkpoints whose entries are of other kinds: one line that names the file, before the first step."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from app.cli.restoration import CheckedRestoration, errors_name_the_checkpoint
from callbacks import NonFinitePolicy
from tests.app.cli.foreign import Points, Regression
from tests.app.cli.parts import SHORT, only_error


def state_of(checkpoint, name):
    """The state of a callback."""
    return next(state for key, state in checkpoint["callbacks"].items() if key.startswith(name))


def loop(checkpoint):
    return checkpoint["loops"]["fit_loop"]


EDITS = {
    "momentum gone": (lambda c: c["optimizer_states"][0].update(state={}), "holds no state of its parameters"),
    "one momentum gone": (lambda c: c["optimizer_states"][0]["state"].pop(3), "holds 16 of 17 entries"),
    "optimizer gone": (lambda c: c["optimizer_states"].clear(), "the states of 0 optimizers, and there are 1"),
    "schedule gone": (lambda c: c["lr_schedulers"].clear(), "the states of 0 schedules"),
    "rate": (lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=7.0), "the schedule has set 0.05"),
    "momentum": (
        lambda c: c["optimizer_states"][0]["state"][0]["momentum_buffer"].fill_(torch.nan),
        "momentum_buffer contains non-finite values",
    ),
    "method": (lambda c: c["lr_schedulers"][0].update(get_lr=[1]), "get_lr is not an entry of such a schedule"),
    "weight": (
        lambda c: c["state_dict"].update({"classifier.bias": torch.ones(6, dtype=torch.long)}),
        "state_dict.classifier.bias is of int64, and here of float32",
    ),
    "shape": (
        lambda c: c["state_dict"].update({"classifier.bias": torch.zeros(7)}),
        "classifier.bias is [7] there and [6] here",
    ),
    "seed": (lambda c: c["Textures"].update(seed="x"), "Textures.seed is x, not a count"),
    "batches": (lambda c: c["Textures"].update(batches=-1), "Textures.batches is -1, not a count"),
    "counter": (
        lambda c: loop(c)["epoch_loop.state_dict"].update(_batches_that_stepped=10**30),
        "_batches_that_stepped is 1000000000000000000000000000000, not a whole number",
    ),
    "negative": (lambda c: loop(c)["epoch_progress"]["total"].update(ready=-1), "ready is -1, and cannot be negative"),
    "unknown": (lambda c: loop(c)["epoch_progress"]["total"].update(reset=1), "reset is missing or unknown"),
    "progress": (lambda c: loop(c).pop("epoch_progress"), "loops.fit_loop has no epoch_progress"),
    "skipped": (lambda c: state_of(c, "NonFinite").update(skipped="x"), "NonFinitePolicy.skipped is x, not a whole"),
    "entry": (lambda c: state_of(c, "NonFinite").clear() or state_of(c, "NonFinite").update(a=1), "no entry skipped"),
    "score": (lambda c: state_of(c, "ModelCheckpoint").update(kth_value="x"), "kth_value holds x, not a score"),
    "path": (lambda c: state_of(c, "LastCheckpoint").update(best_model_path=3), "best_model_path is 3, not a text"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_what_a_run_does_not_resume(main, demo, trained, capsys, edit):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    change, message = EDITS[edit]
    change(checkpoint)
    torch.save(checkpoint, "edited.ckpt")
    arguments = ("--config", demo, "--trainer.max_epochs", 2, *SHORT, "--ckpt_path", "edited.ckpt")
    assert main("fit", *arguments) == 1
    error = only_error(capsys)
    assert message in error
    assert error.startswith("error: --ckpt_path edited.ckpt: ")


def test_an_undamaged_checkpoint_is_resumed(main, demo, trained):
    assert main("fit", "--config", demo, "--trainer.max_epochs", 2, *SHORT, "--ckpt_path", trained / "last.ckpt") == 0


def test_a_checkpoint_from_before_the_states_were_counted(main, demo, trained):
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    assert checkpoint.pop("optimizer_state_counts") == [17]
    torch.save(checkpoint, "older.ckpt")
    assert main("fit", "--config", demo, "--trainer.max_epochs", 2, *SHORT, "--ckpt_path", "older.ckpt") == 0


def fit(folder, model, path=None, **options):
    """A short fit by plain Lightning, with the callback."""
    trainer = pl.Trainer(
        default_root_dir=folder,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CheckedRestoration(), NonFinitePolicy(), ModelCheckpoint(dirpath=folder, filename="a")],
        **options,
    )
    trainer.fit(model, datamodule=Points(), ckpt_path=path)
    return model


def test_a_model_of_another_project_is_resumed_with_settings_of_its_own(tmp_path):
    class Decayed(Regression):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.5)

    fit(tmp_path, Decayed(), max_epochs=1)
    resumed = fit(tmp_path, Regression(), tmp_path / "a.ckpt", max_epochs=2)
    assert all(parameter.isfinite().all() for parameter in resumed.parameters())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_non_finite_weights_of_any_model(tmp_path, number):
    fit(tmp_path, Regression(), max_epochs=1)
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    checkpoint["state_dict"]["linear.bias"][0] = number
    torch.save(checkpoint, tmp_path / "b.ckpt")
    with pytest.raises(ValueError, match=r"state_dict\.linear\.bias contains non-finite values"):
        fit(tmp_path, Regression(), tmp_path / "b.ckpt", max_epochs=2)


def trainer_that_restores(loaded, path="a.ckpt"):
    return SimpleNamespace(_checkpoint_connector=SimpleNamespace(_loaded_checkpoint=loaded), ckpt_path=path)


@pytest.mark.parametrize(
    ("loaded", "error", "message"),
    [
        ({"a": 1}, ValueError("wrong"), r"^--ckpt_path a.ckpt: wrong$"),
        ({"a": 1}, KeyError("b"), r"^--ckpt_path a.ckpt: its states have no entry b$"),
        ({"a": 1}, ValueError("a.ckpt is wrong"), r"^a.ckpt is wrong$"),
        ({}, ValueError("later"), "^later$"),
    ],
)
def test_errors_while_a_checkpoint_is_restored_name_it(loaded, error, message):
    with pytest.raises(ValueError, match=message), errors_name_the_checkpoint(trainer_that_restores(loaded)):
        raise error


def test_interrupts_are_not_errors_of_a_checkpoint():
    with pytest.raises(KeyboardInterrupt), errors_name_the_checkpoint(trainer_that_restores({"a": 1})):
        raise KeyboardInterrupt


def test_the_time_of_restoring_that_lightning_keeps(tmp_path):
    """The attribute of Lightning's by which an error of the restoration is told from a later one."""
    seen = []

    class Observer(pl.Callback):
        def on_load_checkpoint(self, trainer, pl_module, checkpoint):
            seen.append(bool(trainer._checkpoint_connector._loaded_checkpoint))

        def on_train_start(self, trainer, pl_module):
            seen.append(bool(trainer._checkpoint_connector._loaded_checkpoint))

    fit(tmp_path, Regression(), max_epochs=1)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, logger=False, accelerator="cpu", max_epochs=2, callbacks=[Observer()],
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Regression(), datamodule=Points(), ckpt_path=tmp_path / "a.ckpt")
    assert seen == [True, False]

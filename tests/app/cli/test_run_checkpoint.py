"""Checkpoints that are damaged, hostile, incomplete or another program's: one line, and nothing in them is executed."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from app.cli.run_checkpoint import read_run


class Hostile:
    def __reduce__(self):
        return open, ("executed", "w")


def test_damaged_and_invalid_checkpoints(main, demo, capsys, trained, tmp_path):
    last = torch.load(trained / "last.ckpt", weights_only=True)
    whole = (trained / "last.ckpt").read_bytes()
    place = whole.find(last["state_dict"]["classifier.weight"].numpy().tobytes())
    one_bit = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
    unreadable, invalid = "is not a checkpoint that can be read: ", "is not a checkpoint of this program: "
    for content, message in (
        (whole[:5000], unreadable),
        (one_bit, unreadable),
        (b"no checkpoint", unreadable),
        ({"state_dict": Hostile()}, unreadable),
        ({"weight": torch.zeros(1)}, invalid + "it holds no state_dict"),
        (last | {"loops": {}}, invalid + "its loops hold no test_loop"),
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
    "loops": {"fit_loop": {}, "test_loop": {}}, "optimizer_states": [], "lr_schedulers": [], "callbacks": {},
}  # fmt: skip
COUNTERS = {"total": {}, "current": {}}


@pytest.mark.parametrize(
    ("change", "subcommand", "message"),
    [
        ({}, "fit", None),
        ({"loops": None, "optimizer_states": None}, "test", None),
        ({"loops": None}, "fit", "it holds no loops; to start from its weights, --model.init_from"),
        ({"optimizer_states": None}, "fit", "it holds no optimizer_states; to start from its weights"),
        ({"hyper_parameters": None}, "test", "it holds no hyper_parameters; to start from its weights"),
        ({"hyper_parameters": [1]}, "test", "hyper_parameters is a list, not a dict"),
        ({"hyper_parameters": {"_class_path": 3}}, "test", "it names no model"),
        ({"state_dict": [1]}, "test", "state_dict is a list, not a dict"),
        ({"pytorch-lightning_version": None}, "test", "it holds no pytorch-lightning_version"),
        ({"loops": [1]}, "test", "its loops hold no test_loop"),
        ({"loops": {"test_loop": {}}}, "validate", "its loops hold no validate_loop"),
        ({"loops": {"fit_loop": {"epoch_progress": 3}}}, "fit", "epoch_progress of its fit_loop is not a dict"),
        ({"loops": {"fit_loop": {"epoch_progress": {"total": {}}}}}, "fit", "holds no current counters"),
        ({"loops": {"fit_loop": {"epoch_progress": COUNTERS}}}, "fit", None),
        ({"optimizer_states": [{"state": {}}]}, "fit", "an entry of optimizer_states is not the state of an optimizer"),
        ({"lr_schedulers": ["x"]}, "fit", "an entry of lr_schedulers is not the state of a schedule"),
        ({"callbacks": ["x"]}, "test", "callbacks is not a dict"),
        ({"callbacks": None}, "fit", "it holds no callbacks"),
        ({"pytorch-lightning_version": "x"}, "test", "x is not a version of Lightning"),
        ({"pytorch-lightning_version": "1.5.0"}, "fit", "its entries are not those of Lightning 1.5.0"),
        ({"global_step": "x"}, "fit", "global_step is x, not a count"),
        ({"epoch": -1}, "fit", "epoch is -1, not a count"),
        ({"training_setup": [1]}, "fit", "training_setup is a list, not a dict"),
        ({"training_setup": {"optimizer": [1]}}, "fit", r"training_setup.optimizer is \[1\], not a text"),
        ({"hyper_parameters": {"_class_path": "Classifier", 3: 4}}, "test", "3 is not the name of a hyper-parameter"),
        ({"state_dict": {"a": "x"}}, "test", "in its weights, it holds no dictionary of tensors: a is a str"),
        ({"state_dict": {"a": torch.tensor(torch.nan)}}, "test", "in its weights, a contains non-finite values"),
    ],
)
def test_entries_that_a_checkpoint_must_have(tmp_path, change, subcommand, message):
    path = str(tmp_path / "a.ckpt")
    torch.save({key: value for key, value in {**GOOD, **change}.items() if value is not None}, path)
    refused = pytest.raises(ValueError, match=f"is not a checkpoint of this program: .*{message}")
    with refused if message else nullcontext():
        read_run(path, subcommand, our_model=True)


def test_a_model_of_the_users_may_have_no_hyper_parameters(tmp_path):
    path = str(tmp_path / "a.ckpt")
    torch.save({key: value for key, value in GOOD.items() if key != "hyper_parameters"}, path)
    assert read_run(path, "test", our_model=False)["state_dict"] == {}

import pytest
import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR

from app.models.training_setup import announced, check_unchanged, describe_optimizer, describe_schedule


def optimizer(kind=torch.optim.SGD, **settings):
    return kind([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}], **{"lr": 0.1, **settings})


def test_an_optimizer_is_its_class_and_the_settings_of_its_groups():
    description = describe_optimizer(optimizer(momentum=0.9))
    assert description["optimizer"] == "SGD"
    assert (description["optimizer.lr[0]"], description["optimizer.lr[1]"]) == ("0.1", "0.5")
    assert description["optimizer.momentum[1]"] == "0.9"
    assert not any("params" in key or "initial_lr" in key for key in description)


def test_a_schedule_is_its_class_and_settings():
    description = describe_schedule(MultiStepLR(optimizer(), [3, 5], gamma=0.2))
    assert description["lr_scheduler"] == "MultiStepLR"
    assert description["lr_scheduler.gamma"] == "0.2"
    assert description["lr_scheduler.milestones"] == "Counter({3: 1, 5: 1})"
    # the address of a function differs from one process to the next
    assert "0x" not in str(describe_schedule(LambdaLR(optimizer(), lambda epoch: 1.0)))


class Announcing(pl.Callback):
    def __init__(self, **parts):
        self.training_setup = parts


def test_callbacks_announce_their_parts():
    callbacks = [pl.Callback(), Announcing(Noise="0.1"), Announcing(Noise2="0.2")]
    assert announced(callbacks) == {"Noise": "0.1", "Noise2": "0.2"}


SGD = {"optimizer": "SGD", "optimizer.lr[0]": "0.1"}


@pytest.mark.parametrize(
    ("stored", "here", "message"),
    [
        (SGD, {**SGD, "optimizer.lr[0]": "0.2"}, r"\(optimizer\.lr\[0\]: 0\.1 in the checkpoint, 0\.2 now\)"),
        # where the class differs, its settings are left out
        (SGD, {"optimizer": "Adam", "optimizer.lr[0]": "0.2"}, r"\(optimizer: SGD in the checkpoint, Adam now\)"),
        (SGD, {**SGD, "Noise": "0.1"}, r"\(Noise: not in use in the checkpoint, 0\.1 now\)"),
        (
            {**SGD, "OptimalLearningRate": "in use"},
            SGD,
            r"\(OptimalLearningRate: in use in the checkpoint, not in",
        ),
    ],
)
def test_differences_are_named(stored, here, message):
    with pytest.raises(ValueError, match="another optimizer, schedule or treatment " + message):
        check_unchanged(stored, here)


def test_older_checkpoints_name_parts_that_are_not_in_use():
    check_unchanged({**SGD, "OptimalLearningRate": "not in use"}, SGD)
    check_unchanged(SGD, SGD)


def test_a_long_list_of_differences_is_cut():
    stored = {f"part{i}": "x" * 10**5 for i in range(1000)}
    with pytest.raises(ValueError, match=r"and 992 more\)") as error:
        check_unchanged(stored, {})
    assert len(str(error.value)) < 3000

"""Training images that were added, removed or renamed between a stop and a resumption."""

import re

import pytest

from datamodules.training_position import TrainingList, TrainingPosition

NAMES = ["a", "b"]
LIST = TrainingList.of(24, NAMES, b"files")


def position(complete, **changes):
    state = {"seed": 0, "epoch": 1, "batches": 2, "batch_size": 4, "images": 24, "fingerprint": LIST.fingerprint}
    return TrainingPosition(epoch_is_complete=int(complete), **{**state, **changes})


CHANGED = {
    "number": (TrainingList.of(25, NAMES, b"files"), "the training set has 25 images, and 24 in the checkpoint"),
    "files": (TrainingList.of(24, NAMES, b"others"), "has 24 images as in the checkpoint, but other files"),
    "classes": (TrainingList.of(24, ["a", "c"], b"files"), "has 24 images as in the checkpoint, but other files"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_changed_list_is_an_error_mid_epoch_and_a_warning_between_epochs(change):
    now, message = CHANGED[change]
    with pytest.raises(ValueError, match=re.escape(message)):
        position(complete=False).check(4, now)
    with pytest.warns(UserWarning, match=re.escape(message)):
        position(complete=True).check(4, now)


@pytest.mark.parametrize("complete", [True, False])
def test_the_same_list_is_accepted_and_so_are_checkpoints_without_one(complete, recwarn):
    position(complete).check(4, TrainingList.of(24, NAMES, b"files"))
    position(complete, images=None, fingerprint=None).check(4, TrainingList.of(25, NAMES, b"files"))
    assert not recwarn


def test_another_batch_size_is_an_error_mid_epoch_only():
    position(complete=True).check(3, LIST)
    with pytest.raises(ValueError, match=r"data.batch_size is 3, and 4 in the checkpoint, .* middle of an epoch"):
        position(complete=False).check(3, LIST)


MODEL = ("--model", "Classifier", "--model.num_classes", 3, "--model.backbone", "compact", "--model.dim", 4)
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


@pytest.mark.parametrize(("steps", "status"), [(6, 1), (4, 0)])
def test_an_image_more_through_the_command_line(main, mini, tmp_path, capsys, recwarn, steps, status):
    """Stopped mid-epoch, and at the end of an epoch of 4 steps."""
    root = mini.class_folders(tmp_path / "data")
    data = ("--data", "CIFAR10", "--data.root", root, "--data.batch_size", 2, "--data.num_workers", 0)
    start = ("fit", *MODEL, *data, "--data.check_counts", "false", *QUIET, "--trainer.max_epochs", 3)
    assert main(*start, "--trainer.max_steps", steps) == 0
    mini.jpeg(root / "train" / mini.classes[0] / "new.jpg", 60)
    assert main(*start, "--ckpt_path", "last") == status
    message = "the training set has 10 images, and 9 in the checkpoint"
    found = capsys.readouterr().err + " ".join(str(warning.message) for warning in recwarn)
    assert message in found

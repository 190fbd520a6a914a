"""A class that was renamed, or replaced by another, after the training."""

import pytest

from datamodules.class_names import describe_renamed_classes

MODEL = ("--model", "Classifier", "--model.num_classes", 3, "--model.backbone", "compact", "--model.dim", 4)
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def test_what_is_said():
    assert describe_renamed_classes(["a", "b"], ["a", "b"]) is None
    assert describe_renamed_classes(["a", "b"], ["a", "c"]) == "class 1 was b in training and is c in the data"
    assert describe_renamed_classes(["a", "b", "c"], ["b", "c", "d"]).endswith(", and 2 more have other names")
    for unknown in (None, "ab", ["a"], [1, 2], {"a": "b"}):
        assert describe_renamed_classes(unknown, ["a", "b"]) is None
    assert describe_renamed_classes(["\x1b[2J" * 99], ["a"]).isprintable()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_it_is_said_in_evaluation_and_prediction(main, mini, tmp_path, recwarn, command):
    root = mini.class_folders(tmp_path / "data")
    data = ("--data", "CIFAR10", "--data.root", root, "--data.batch_size", 2, "--data.num_workers", 0)
    data += ("--data.check_counts", "false", "--data.predict_folder", root / "val")
    assert main("fit", *MODEL, *data, *QUIET, "--trainer.max_epochs", 1) == 0
    start = (command, *MODEL, *data, *QUIET, "--ckpt_path", "last")
    assert main(*start) == 0
    assert not [str(w.message) for w in recwarn if "in training and is" in str(w.message)]
    for split in ("train", "val"):
        (root / split / "n02-bee").rename(root / split / "n02-wasp")
    assert main(*start) == 0
    (message,) = [str(w.message) for w in recwarn if "in training and is" in str(w.message)]
    assert message.endswith("class 1 was n02-bee in training and is n02-wasp in the data")

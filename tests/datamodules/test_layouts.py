"""Every official layout through the command line: train, validate and test."""

import re

import pytest

LAYOUTS = {
    "imagenet": ("ImageNet", lambda mini, root: mini.class_folders(root)),
    "cifar10": ("CIFAR10", lambda mini, root: mini.cifar(root, 10)),
    "cifar100": ("CIFAR100", lambda mini, root: mini.cifar(root, 100)),
    "birds": ("Birds", lambda mini, root: mini.birds(root)),
    "dogs": ("Dogs", lambda mini, root: mini.dogs(root)),
    "dogs, lists/": ("Dogs", lambda mini, root: mini.dogs(root, "lists")),
    "cars, devkit": ("Cars", lambda mini, root: mini.cars_devkit(root)),
    "cars, all labels in devkit": ("Cars", lambda mini, root: mini.cars_devkit(root, "stanford_cars/devkit")),
    "cars, one list": ("Cars", lambda mini, root: mini.cars_one_list(root)),
    "class folders": ("Birds", lambda mini, root: mini.class_folders(root, "test")),
}
MODEL = ("--model", "Classifier", "--model.num_classes", 3, "--model.backbone", "compact", "--model.dim", 4)
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def data(name, root):
    size = ("--data.batch_size", 4, "--data.num_workers", 0)
    return ("--data", name, "--data.root", root, *size, "--data.check_counts", "false")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_train_validate_and_test(layout, main, mini, tmp_path, capsys):
    name, write = LAYOUTS[layout]
    write(mini, tmp_path / "data")
    common = (*MODEL, *data(name, tmp_path / "data"), *QUIET)
    assert main("fit", *common, "--trainer.max_epochs", 1) == 0
    trained = capsys.readouterr().out.splitlines()[-1]
    best = float(re.search(r"best ([\d.]+)", trained)[1])
    assert main("validate", *common, "--ckpt_path", "best") == 0
    assert float(re.search(r"val/top1\s+│?\s*([\d.]+)", capsys.readouterr().out)[1]) == pytest.approx(best, abs=1e-4)
    assert main("test", *common, "--ckpt_path", "last") == 0
    # validation and test are the same images, and the last epoch is the best one
    assert float(re.search(r"test/top1\s+│?\s*([\d.]+)", capsys.readouterr().out)[1]) == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("name", ["ImageNet", "CIFAR10", "CIFAR100", "Birds", "Dogs", "Cars"])
def test_a_wrong_folder_is_one_line(name, main, tmp_path, capsys):
    for root in (tmp_path / "none", tmp_path):
        assert main("fit", *MODEL, *data(name, root), *QUIET) == 1
        (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert error.startswith(f"error: {name}: ")
        assert str(root) in error
        assert "http" in error or "data.download" in error

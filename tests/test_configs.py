"""Every configuration: one training and one validation batch on miniature data in the official layout."""

import pytest
import torch
import yaml

from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
RECIPES = [path for path in CONFIGS if path.parent.name in ("imagenet", "cifar", "fgvc")]
NAMES = [f"{path.parent.name}/{path.stem}" for path in RECIPES]
LAYOUT = {"ImageNet": "class_folders", "Birds": "birds", "Dogs": "dogs", "Cars": "cars_devkit", "CIFAR10": "cifar"}
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def written(mini, config, root):
    """Write miniature data for a configuration; returns the flags that make it use them."""
    name = config["data"]["class_path"]
    if name == "CIFAR100":
        mini.cifar(root, 100)
    else:
        getattr(mini, LAYOUT[name])(root)
    size = ("--data.batch_size", 2, "--data.num_workers", 0)
    return ("--model.num_classes", 3, "--data.root", root, "--data.check_counts", "false", *size)


@pytest.mark.parametrize("path", RECIPES, ids=NAMES)
def test_one_batch(path, main, mini, tmp_path):
    config = yaml.safe_load(path.read_text())
    flags = written(mini, config, tmp_path / "data")
    if "init_from" in config["model"]["init_args"]:
        flags += ("--model.init_from", "null")
    assert main("fit", "--config", path, *flags, *QUIET, "--trainer.fast_dev_run", 1) == 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_header_says_how_to_run_it(path):
    text = path.read_text()
    header = text[: text.index("\nseed_everything")]
    assert f"python train.py fit --config {path.relative_to(ROOT)}" in header
    assert all(len(line) <= 120 for line in text.splitlines())
    if path in RECIPES:
        assert "table" in header or "figure" in header
        assert "Needs " in header
        assert "published" in header.lower()


@pytest.mark.slow
def test_from_imagenet_to_birds_dogs_and_cars(main, mini, tmp_path, capsys, caplog):
    """Pre-training, its checkpoint, and fine-tuning with the settings of table 4."""
    config = ROOT / "configs" / "imagenet" / "resnet50.yaml"
    flags = written(mini, yaml.safe_load(config.read_text()), tmp_path / "imagenet")
    for split in ("train", "val"):  # a class more than the others have: their classifier is a new one
        mini.jpeg(tmp_path / "imagenet" / split / "n04-yak" / "1.jpg", 250)
    flags += ("--model.num_classes", 4)
    short = ("--trainer.max_epochs", 1, "--trainer.limit_train_batches", 2, "--trainer.num_sanity_val_steps", 0)
    options = ("--model.meta_layer", "svd-taylor", "--model.meta_options.taylor_degree", 50)
    assert main("fit", "--config", config, *flags, *QUIET, *short, *options) == 0
    pretrained = tmp_path / "runs" / "imagenet_resnet50" / "version_0" / "checkpoints" / "last.ckpt"
    before = torch.load(pretrained, weights_only=True)["state_dict"]
    for name in ("birds", "dogs", "cars"):
        capsys.readouterr(), caplog.clear()
        config = ROOT / "configs" / "fgvc" / f"{name}.yaml"
        flags = written(mini, yaml.safe_load(config.read_text()), tmp_path / name)
        run = (
            "--model.init_from",
            pretrained,
            *QUIET,
            "--trainer.max_epochs",
            1,
            "--trainer.limit_train_batches",
            0.25,
        )
        assert main("fit", "--config", config, *flags, *run, "--trainer.num_sanity_val_steps", 0) == 0
        assert "validation top-1" in capsys.readouterr().out.splitlines()[-1]
        assert "last.ckpt: loaded 324 tensors of backbone, pooling" in caplog.text
        assert "not loaded: classifier.weight (4x32896 in the file, 3x32896 here), classifier.bias" in caplog.text
        assert "svd-taylor in the checkpoint, svd-pade in the configuration: the checkpoint wins" in caplog.text
        after = torch.load(
            tmp_path / "runs" / f"fgvc_{name}" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
        )
        assert after["hyper_parameters"]["meta_layer"] == "svd-taylor"
        assert after["hyper_parameters"]["meta_options"] == {"taylor_degree": 50}
        assert [group["lr"] for group in after["optimizer_states"][0]["param_groups"]] == [1.2e-3, 6e-3]
        # one step of 1.2e-3 away from pre-training
        weight = "pooling.reduction.0.weight"
        distance = (after["state_dict"][weight] - before[weight]).norm() / before[weight].norm()
        assert 0 < distance < 0.1

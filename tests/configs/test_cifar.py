"""The flags in the headers of configs/cifar, on pictures of noise."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

FOLDER = Path(__file__).parents[2] / "configs" / "cifar"
FLAGS = {
    name: shlex.split(value)
    for name, value in re.findall(r'^#   (\w+)="(.*?)"', (FOLDER / "resnet50_cifar100.yaml").read_text(), re.MULTILINE)
}
COMBINATIONS = ("SN", "OL", "OW", "NOG", "OLR", "NOG SN", "OL NOG", "NOG OW", "OW OLR", "NOG OLR", "NOG OW OLR")
"""Of tables 1 to 5."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, three pictures each, for training and validation."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(3):
                image = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(image.numpy()).save(root / split / name / f"{i}.png")
    return root


def short(pictures):
    return [
        *("--data.root", pictures, "--data.check_counts", "false", "--data.batch_size", "3", "--data.num_workers", "0"),
        *("--model.num_classes", "2", "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "1"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
        *("--trainer.accelerator", "cpu", "--trainer.logger", "false"),
    ]


@pytest.mark.parametrize("config", ["resnet50_cifar10.yaml", "resnet50_cifar100.yaml"])
def test_the_config_trains(main, pictures, config, capsys):
    limit = ("--trainer.limit_train_batches", "1")
    assert main("fit", "--config", FOLDER / config, *short(pictures), *limit) == 0
    assert "validation top-1" in capsys.readouterr().out


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_every_combination_of_treatments_trains_by_its_flags(main, pictures, combination, tmp_path, recwarn):
    flags = []
    for name in combination.split():
        flags += FLAGS[name]
    config = FOLDER / "resnet50_cifar100.yaml"
    compact = ("--model.backbone", "compact", "--model.stem", "imagenet")  # for the time of this test
    assert main("fit", "--config", config, *short(pictures), *compact, *flags) == 0
    warned = [str(w.message) for w in recwarn if "its rate then tends to zero" in str(w.message)]
    assert len(warned) == (combination in ("OW OLR", "NOG OLR"))
    state = torch.load(next(tmp_path.glob("checkpoints/last.ckpt")), weights_only=True)
    groups = state["optimizer_states"][0]["param_groups"]
    assert len(groups) == (3 if "OLR" in combination.split() else 2)
    assert {group["lr"] for group in groups} == {0.1}
    assert ("NearestOrthogonalGradient" in state["callbacks"]) == ("NOG" in combination.split())
    original = "backbone.stage1.0.parametrizations.weight.original" in state["state_dict"]
    assert original == bool({"SN", "OW"} & set(combination.split()))


def test_a_treated_network_is_tested_without_its_treatment(main, pictures, tmp_path, capsys):
    common = ("--config", FOLDER / "resnet50_cifar100.yaml", *short(pictures))
    common = (*common, "--model.backbone", "compact", "--model.stem", "imagenet")
    assert main("fit", *common, *FLAGS["OW"]) == 0
    losses = []
    for flags in ((), ("--model.weight_treatment", "null")):
        capsys.readouterr()
        assert main("test", *common, "--ckpt_path", "checkpoints/last.ckpt", *flags) == 0
        losses.append(re.search(r"test/loss\W+([\d.]+)", capsys.readouterr().out)[1][:6])
    assert losses[0] == losses[1]


def test_flags_add_to_callbacks_that_a_config_has_already(main, pictures, tmp_path, capsys):
    config = yaml.safe_load((FOLDER / "resnet50_cifar10.yaml").read_text())
    config["trainer"]["callbacks"] = [{"class_path": "OrthogonalLoss", "init_args": {"coefficient": 0.5}}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ("fit", "--config", tmp_path / "config.yaml", *short(pictures), "--print_config")
    main(*arguments, *FLAGS["NOG"], *FLAGS["OL"], "--trainer.callbacks.coefficient", "0.25")
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    assert [callback["class_path"].rsplit(".", 1)[-1] for callback in callbacks] == [
        "OrthogonalLoss",
        "NearestOrthogonalGradient",
        "OrthogonalLoss",
    ]
    assert [callbacks[i]["init_args"]["coefficient"] for i in (0, 2)] == [0.5, 0.25]


def test_every_combination_has_its_published_number():
    published = yaml.safe_load((FOLDER / "resnet50_cifar100.yaml").read_text())["published"]
    order = ("SN", "OL", "NOG", "OW", "OLR")
    names = {" + ".join(["svd-pade", *sorted(c.split(), key=order.index)]) for c in COMBINATIONS}
    assert published.keys() == {"table", "svd-pade", "isqrt-cov", *names}

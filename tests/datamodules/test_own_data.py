"""A data set and an augmentation from files outside this repository, by class path on the command line."""

import pytest
import torch
import yaml
from PIL import Image

DATA_SET = '''
from datamodules import ImageFilesModule


class Dots(ImageFilesModule):
    """Files whose names contain their class."""

    class_names = ["dark", "light"]

    def files(self, split):
        return [(path.name, int("light" in path.name)) for path in sorted(self.root.glob(f"{split}_*.png"))]
'''

AUGMENTATION = '''
import random


class Shift:
    """Adds the same random number to all pixels, from a generator that torch does not know."""

    def __init__(self, largest: int = 3):
        self.largest = largest

    def __call__(self, image):
        return image + random.randrange(self.largest + 1)


def invert(image):
    return 255 - image
'''

MODEL = ("--model", "Classifier", "--model.backbone", "compact", "--model.dim", 4)
QUIET = (
    *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    *("--trainer.accelerator", "cpu", "--trainer.num_sanity_val_steps", 0),
)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A run on a data set of one's own, of 2 epochs of 4 steps."""
    (tmp_path / "own_data.py").write_text(DATA_SET)
    (tmp_path / "own_augmentation.py").write_text(AUGMENTATION)
    monkeypatch.syspath_prepend(tmp_path)
    for split, number in (("train", 8), ("val", 4)):
        for i in range(number):
            name = "dark" if i % 2 else "light"
            picture = Image.effect_noise((260, 230), 20 if i % 2 else 90).convert("RGB")
            picture.save(tmp_path / f"{split}_{i}_{name}.png")
    data = ("--data", "own_data.Dots", "--data.root", tmp_path, "--data.batch_size", 2, "--data.num_workers", 0)
    return ("fit", *MODEL, *data, *QUIET, "--trainer.max_epochs", 2)


def checkpoint(folder, version):
    return torch.load(folder / f"runs/run/version_{version}/checkpoints/last.ckpt", weights_only=True)


def test_a_data_set_of_ones_own(main, start, tmp_path, capsys):
    assert main(*start, "--trainer.max_epochs", 1) == 0
    assert "validation top-1" in capsys.readouterr().out.splitlines()[-1]
    assert checkpoint(tmp_path, 0)["hyper_parameters"]["num_classes"] == 2  # that of the data
    (tmp_path / "new").mkdir()
    Image.new("RGB", (300, 300), (200, 200, 200)).save(tmp_path / "new" / "a.png")
    prediction = ("--ckpt_path", "last", "--data.predict_folder", tmp_path / "new")
    assert main("predict", *(part for part in start[1:-2]), *prediction) == 0
    (row,) = (tmp_path / "predictions.csv").read_text().splitlines()[1:]
    assert row.split(",")[1] in ("dark", "light")


@pytest.mark.parametrize("number", [3, 1])
def test_a_number_of_classes_that_is_given_wins_and_is_checked(main, start, capsys, number):
    assert main(*start, "--model.num_classes", number) == 1
    error = capsys.readouterr().err
    assert ("the data have 2 classes" if number == 3 else "num_classes must be at least 2, got 1") in error


FOREIGN = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset


class Foreign(pl.LightningDataModule):
    num_classes = 4

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4)), batch_size=2)

    val_dataloader = train_dataloader
"""


def test_a_data_module_of_another_project_gives_its_number_of_classes(main, tmp_path, monkeypatch):
    (tmp_path / "foreign_data.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(tmp_path)
    assert main("fit", *MODEL, "--data", "foreign_data.Foreign", *QUIET, "--trainer.max_epochs", 1) == 0
    assert checkpoint(tmp_path, 0)["hyper_parameters"]["num_classes"] == 4


@pytest.mark.parametrize(
    "augmentation",
    ["torchvision.transforms.v2.RandAugment", "torchvision.transforms.v2.AutoAugment", "own_augmentation.invert"],
)
def test_augmentations_by_name(main, start, augmentation):
    assert main(*start, "--data.augmentation", augmentation, "--trainer.fast_dev_run", 1) == 0


SEVERAL = {
    "class_path": "torchvision.transforms.v2.Compose",
    "init_args": {
        "transforms": [
            {"class_path": "own_augmentation.Shift", "init_args": {"largest": 50}},
            {"class_path": "torchvision.transforms.v2.RandAugment", "init_args": {"num_ops": 1}},
        ]
    },
}


def test_a_resumed_run_repeats_the_augmentation_also_from_its_saved_configuration(main, start, tmp_path):
    configuration = {"data": {"class_path": "own_data.Dots", "init_args": {"augmentation": SEVERAL}}}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(configuration))
    several = ("fit", "--config", tmp_path / "several.yaml", *start[1:])
    assert main(*several) == 0
    assert main(*start) == 0
    assert main(*several, "--trainer.max_steps", 3) == 0
    saved = tmp_path / "runs/run/version_2/config.yaml"
    assert yaml.safe_load(saved.read_text())["data"]["init_args"]["augmentation"]["init_args"] is not None
    assert main("fit", "--config", saved, "--trainer.max_steps", -1, "--ckpt_path", "last") == 0
    whole, without, resumed = (checkpoint(tmp_path, version)["state_dict"] for version in range(3))
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    assert not torch.equal(whole["classifier.weight"], without["classifier.weight"])

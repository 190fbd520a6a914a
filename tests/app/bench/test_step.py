"""The command ``python -m app.bench --step``."""

import re
import sys
from types import SimpleNamespace

import pytest
import yaml

from app.bench import __main__ as bench
from app.bench.step import random_batch
from app.bench.step_timer import PARTS


def test_command(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--step", "--config", str(demo), "--repeats", "1", "--data.batch_size", "8"]
    bench.main([*flags, "--batches", "2", "--data.num_workers", "2"])
    output = capsys.readouterr().out
    assert all(f"  {part} " in output for part in ("loader", *PARTS))
    shares = [float(share) for share in re.findall(r" ms +([0-9.]+)%", output)]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert "batch 8 x 3 x 48 x 48, medians of 2 steps" in output  # as many as loader processes
    assert re.search("the (network|loader) is the bottleneck", output)
    bench.main([*flags, "--synthetic", "32", "--model.meta_layer", "gap"])
    output = capsys.readouterr().out
    assert "batch 8 x 3 x 32 x 32" in output
    assert "loader" not in output
    bench.main([*flags, "--synthetic", "32", "--trainer.precision", "bf16-true", "--model.init_from", "none.ckpt"])
    assert "bf16-true" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())  # no checkpoint and no log


def test_treatments_are_timed_and_other_callbacks_left_out(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ("NearestOrthogonalGradient", "LearningRateMonitor", "EarlyStopping", "ModelCheckpoint")
    callbacks = [{"class_path": name} for name in names]
    callbacks[2]["init_args"] = {"monitor": "val/top1"}
    more = {"trainer": {"callbacks": callbacks, "accumulate_grad_batches": 2, "gradient_clip_val": 0.1}}
    config = tmp_path / "more.yaml"
    config.write_text(yaml.safe_dump(more))
    bench.main(["--step", "--config", str(demo), "--config", str(config), "--repeats", "1", "--synthetic", "32"])
    milliseconds = re.search(r"  treatments +([0-9.]+) ms", capsys.readouterr().out)
    assert float(milliseconds[1]) > 0
    assert list(tmp_path.iterdir()) == [config]


FOREIGN = """
import pytorch_lightning as pl
from torch import nn

class Plain(pl.LightningModule):
    def __init__(self, width: int = 4):
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 3)
"""


def test_a_model_without_the_parts_is_one_line(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "plain_model.py").write_text(FOREIGN)
    config = yaml.safe_load(demo.read_text())
    config["model"] = {"class_path": "plain_model.Plain", "init_args": {"width": 3}}
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        bench.main(["--import", "plain_model", "--step", "--config", "plain.yaml"])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "the modules backbone, pooling and classifier" in error
    assert "Plain has no pooling and no classifier" in error
    sys.modules.pop("plain_model", None)


def test_random_images_need_a_batch_size_and_a_number_of_classes():
    model, data = SimpleNamespace(num_classes=5), SimpleNamespace(batch_size=2)
    images, labels = random_batch(model, data, 16)
    assert (images.shape, labels.shape) == ((2, 3, 16, 16), (2,))
    with pytest.raises(ValueError, match="--synthetic: random images need batch_size, which NoneType does not have"):
        random_batch(model, None, 16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "none.yaml"], r"none\.yaml"),
        (["--config", "DEMO", "--repeats", "0"], "repeats"),
        (["--config", "DEMO", "--synthetic", "-5"], "error: --synthetic: Not of type"),
        (["--config", "DEMO", "--batches", "none"], "batches"),
        (["--config", "DEMO", "--data.batch_size", "100000"], r"data\.batch_size 100000"),
        (["--config", "DEMO", "--trainer.max_epochs", "0"], "no step was measured"),
    ],
)
def test_bad_arguments_are_one_line(demo, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        bench.main(["--step", *(str(demo) if argument == "DEMO" else argument for argument in arguments)])
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error

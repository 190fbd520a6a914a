"""The arguments of the model that stand on the command line itself."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.cli import LightningCLI

from app.cli.given_arguments import given_model_keys
from app.cli.parser import Parser


class Method:
    def __init__(self, degree: int = 3):
        self.degree = degree


class Padded(Method):
    def __init__(self, degree: int = 3, order: int = 2):
        super().__init__(degree)
        self.order = order


class Model(pl.LightningModule):
    def __init__(
        self, classes: int, layer: str | Method = "plain", dim: int = 3, options: dict[str, int] | None = None
    ):
        super().__init__()


class NothingRuns(LightningCLI):
    def parse_arguments(self, parser, args):
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self):
        pass

    def instantiate_classes(self):
        pass

    def _run_subcommand(self, subcommand):
        pass


FILE = """
model:
  class_path: Model
  init_args: {classes: 4, dim: 5, layer: {class_path: Padded}}
trainer:
  callbacks: [{class_path: EarlyStopping, init_args: {monitor: loss}}]
"""


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ([], set()),
        (["--trainer.max_epochs", "3"], set()),
        (["--model.dim", "5"], {"dim"}),
        (["--model.dim=5", "--model.init_args.classes", "4"], {"dim", "classes"}),
        (["--model.layer.order", "5"], {"layer"}),
        (["--model.layer", "Padded"], {"layer"}),
        (["--model.layer", "Method", "--model.layer.degree", "5"], {"layer"}),
        (["--model.layer", "plain"], {"layer"}),
        (["--model.options.a", "1"], {"options"}),
        (["--model.options", "{a: 1}"], {"options"}),
        (["--model", "Model", "--model.dim", "7"], {"dim"}),
        (["--seed_everything", "3", "--trainer.callbacks.patience", "3"], set()),
    ],
)
@pytest.mark.parametrize("order", ["before", "after"])
def test_keys_of_the_command_line(tmp_path, monkeypatch, arguments, keys, order):
    Path(tmp_path, "model.yaml").write_text(FILE)
    file = ["--config", str(tmp_path / "model.yaml")]
    arguments = ["fit", *file, *arguments] if order == "before" else [*file, "fit", *arguments]
    if order == "after":
        Path(tmp_path, "model.yaml").write_text("fit:" + FILE.replace("\n", "\n  "))
    cli = NothingRuns(args=arguments, parser_class=Parser, auto_configure_optimizers=False)
    assert given_model_keys(cli.parser, cli.config["fit"], arguments) == keys


@pytest.mark.parametrize("whole", ['{"class_path": "Model"}', "model.yaml"])
def test_a_model_as_a_whole_is_refused(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    Path("model.yaml").write_text("class_path: Model\ninit_args: {classes: 3}\n")
    arguments = ["fit", "--model", whole, "--model.classes", "3"]
    cli = NothingRuns(args=arguments, parser_class=Parser, auto_configure_optimizers=False)
    with pytest.raises(ValueError, match="give single values of the model"):
        given_model_keys(cli.parser, cli.config["fit"], arguments)

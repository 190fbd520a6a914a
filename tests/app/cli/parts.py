"""Parts that the tests of the command line share."""

from pathlib import Path

import yaml

SHORT = (
    "--trainer.limit_train_batches",
    "2",
    "--trainer.limit_val_batches",
    "2",
    "--trainer.enable_progress_bar",
    "false",
)


def only_error(capsys):
    """The only error line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def meta_layer(config):
    return yaml.safe_load(Path(config).read_text())["model"]["init_args"]["meta_layer"]

from pathlib import Path

import pytest

from tests.app.cli.parts import SHORT


@pytest.fixture
def trained(main, demo, capsys):
    """The checkpoints of a run of one short epoch in the current folder."""
    assert main("fit", "--config", demo, "--trainer.max_epochs", 1, *SHORT) == 0
    capsys.readouterr()
    return Path("runs/demo/version_0/checkpoints")

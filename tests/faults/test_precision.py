"""A run of any precision is resumed bit by bit."""

import pytest

pytestmark = pytest.mark.slow  # three runs each


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "16-mixed", "32-true"])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_resumed_run_is_an_uninterrupted_one(main, small, tmp_path, same, precision, optimizer):
    options = ("--trainer.precision", precision, "--model.optimizer", optimizer, "--model.optimizer.lr", 0.001)
    start = (*small.start, *options)
    assert main(*start, "--trainer.max_epochs", 2) == 0
    assert main(*start, "--trainer.max_epochs", 1) == 0
    assert main(*start, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    assert same(small.read(tmp_path, 0), small.read(tmp_path, 1))

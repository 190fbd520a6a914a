"""A loss or a gradient that is not finite: named, and stopped or left out alike on all processes."""

import pytest
import torch

GAP = ("--model.meta_layer", "gap")


def layer(model):
    return ("--model.meta_layer", model)


@pytest.mark.parametrize(
    ("model", "what", "message"),
    [
        ("gap", "images", "step 2: rank 0 of 1, train/loss is nan: the images are not finite"),
        ("gap", "weight", "step 2: rank 0 of 1, train/loss is nan: the weight backbone.stage1.0.weight is not finite"),
        ("gap", "activation", "step 2: rank 0 of 1, train/loss is nan: first not finite after backbone.stage1.0:"),
        (
            "gap",
            "gradient",
            "step 2: every rank, the gradient is not finite: first in the backward pass in classifier.",
        ),
        (
            "svd-exact",
            "images",
            "train step 2, rank 0: svd-exact pooling of 64 -> 4 channels: 2 of 2 samples have non-",
        ),
    ],
)
def test_the_run_stops_and_says_where(main, small, error, model, what, message):
    assert main(*small.start, *layer(model), *small.fault("Poison", steps="[2]", what=what)) == 1
    assert message in error()


@pytest.mark.parametrize("what", ["images", "gradient"])
@pytest.mark.parametrize("model", ["gap", "svd-exact"])
def test_a_step_that_is_left_out_leaves_no_trace(main, small, tmp_path, same, model, what):
    steps = ("--non_finite.policy", "skip", *layer(model), "--trainer.max_epochs", 1)
    # the third of four steps is left out; and a run without the fourth is the same up to there
    assert main(*small.start, *steps, *small.fault("Poison", steps="[2, 3]", what=what)) == 0
    assert main(*small.start, *steps, "--trainer.limit_train_batches", 2) == 0
    bad, good = small.read(tmp_path, 0), small.read(tmp_path, 1)
    assert all(torch.equal(bad["state_dict"][name], value) for name, value in good["state_dict"].items())
    assert bad["callbacks"]["NonFinitePolicy"] == {"skipped": 2}


def test_two_processes_decide_alike(train, small, tmp_path):
    skip = ("--non_finite.policy", "skip", "--non_finite.patience", 2)
    run = train(*small.start, *small.two, *skip, *small.fault("Poison", steps="[1, 5, 6]", rank=1), cwd=tmp_path)
    assert run.returncode == 1
    message = "{}: rank 1 of 2, train/loss is nan: the images are not finite"
    assert run.stderr.count(f"left out, 1 steps so far: {message.format('step 1')}") == 1
    assert run.stderr.count(f"left out, 2 steps so far: {message.format('step 5')}") == 1
    assert run.stderr.count(f"error: {message.format('step 6')}; that is 2 steps in a row") == 2
    checkpoint = small.read(tmp_path)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())

"""A non-finite loss or gradient: its cause is named, and all processes stop, or skip the step, together."""

import re
from types import SimpleNamespace

import pytest
import torch

from callbacks.non_finite import _discard_gradient

GAP = ("--model.meta_layer", "gap")


def layer(model):
    return ("--model.meta_layer", model)


@pytest.mark.parametrize(
    ("model", "what", "message"),
    [
        ("gap", "images", "step 2: rank 0 of 1, train/loss is nan: the batch contains non-finite values"),
        (
            "gap",
            "weight",
            "step 2: rank 0 of 1, train/loss is nan: the weight backbone.stage1.0.weight contains non-finite",
        ),
        ("gap", "activation", "step 2: rank 0 of 1, train/loss is nan: first non-finite output in backbone.stage1.0:"),
        (
            "gap",
            "gradient",
            "step 2: every rank, the gradient is not finite: first in the backward pass in classifier.",
        ),
        ("svd-exact", "images", "step 2: rank 0 of 1, train/loss is nan: the batch contains non-finite values"),
    ],
)
def test_the_run_stops_and_says_where(main, small, error, model, what, message):
    assert main(*small.start, *layer(model), *small.fault("Poison", steps="[2]", what=what)) == 1
    assert message in error()


def test_a_layer_describes_the_reason_itself(main, small, error):
    model = (*layer("svd-exact"), "--model.dim", "null", "--model.spectral_dtype", "float32")
    rarely = ("--trainer.log_every_n_steps", 100)  # The layer reports it at once.
    assert main(*small.start, *model, *rarely, *small.fault("Poison", steps="[2]", what="huge")) == 1
    message = (
        "step 2: rank 0 of 1, train/loss is nan: svd-exact pooling of 64 channels: 2 of 2 samples have non-finite "
    )
    assert message in (line := error())
    assert "the features are finite, but their covariance overflows: use spectral_dtype float64" in line


@pytest.mark.parametrize("what", ["images", "gradient"])
@pytest.mark.parametrize("model", ["gap", "svd-exact"])
def test_a_skipped_step_leaves_no_trace(main, small, tmp_path, same, model, what):
    steps = ("--non_finite.policy", "skip", *layer(model), "--trainer.max_epochs", 1)
    steps += ("--trainer.callbacks+=SVDFailureCounter", "--trainer.callbacks+=ConditionNumberMonitor")
    # The last two of four steps are skipped. A run of two steps is the same up to there.
    assert main(*small.start, *steps, *small.fault("Poison", steps="[2, 3]", what=what)) == 0
    assert main(*small.start, *steps, "--trainer.limit_train_batches", 2) == 0
    bad, good = small.read(tmp_path, 0), small.read(tmp_path, 1)
    assert all(torch.equal(bad["state_dict"][name], value) for name, value in good["state_dict"].items())
    assert bad["callbacks"]["NonFinitePolicy"] == {"skipped": 2}
    counts = bad["callbacks"]["SVDFailureCounter"]["training"]
    if model == "gap":
        assert counts == {}
    else:  # non-finite images are not decomposed
        assert counts["pooling"]["calls"] == (2 if what == "images" else 4)


def test_no_checkpoint_is_overwritten_with_non_finite_statistics(main, small, tmp_path, error):
    fault = small.fault("Poison", steps="[2]", what="statistics")
    assert main(*small.start, *GAP, "--last.every_n_steps", 1, "--trainer.limit_val_batches", 0, *fault) == 1
    assert "step 3: the statistics backbone.stage1.1.running_mean contain non-finite values" in error()
    assert small.read(tmp_path)["global_step"] == 2


def test_the_first_of_accumulated_batches_counts_too(main, small, error):
    fault = small.fault("Poison", steps="[2]", first_only="true")
    twice = ("--trainer.accumulate_grad_batches", 2, "--data.batch_size", 1)
    assert main(*small.start, *GAP, *twice, *fault) == 1
    assert "step 2: rank 0 of 1, train/loss is nan: in one of the accumulated batches" in error()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_checkpoint_is_overwritten_with_non_finite_weights(main, small, tmp_path, error, accumulate):
    """Average pooling, whose steps are checked when they are logged: here none before the weights diverge."""
    rarely = ("--trainer.log_every_n_steps", 100, "--trainer.accumulate_grad_batches", accumulate)
    rarely += ("--data.batch_size", 1)
    fault = small.fault("Poison", steps="[1]", what="gradient")
    assert main(*small.start, *GAP, *rarely, "--last.every_n_steps", 1, *fault) == 1
    assert "step 2: the weight " in (line := error())
    assert "contains non-finite values, an earlier update diverged: lower the learning rate; the previous" in line
    checkpoint = small.read(tmp_path)
    assert checkpoint["global_step"] == 1
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


def test_every_logged_step_is_checked(main, small, tmp_path, error):
    often = ("--trainer.log_every_n_steps", 2, "--trainer.accumulate_grad_batches", 2, "--data.batch_size", 1)
    fault = small.fault("Poison", steps="[3]", what="weight")  # the fourth, the second that is logged
    assert main(*small.start, *GAP, *often, *fault) == 1
    assert "step 3: rank 0 of 1, train/loss is nan: the weight " in error()


@pytest.mark.parametrize("model", ["gap", "svd-exact"])
def test_validation_stops_at_its_end(main, small, tmp_path, error, model):
    fault = small.fault("Poison", steps="[4]", what="validation")
    assert main(*small.start, *layer(model), *fault) == 1
    assert re.search("val/loss is nan after step 4: .*check the ", error())
    assert not small.last(tmp_path).exists()


def test_the_loss_scaler_skips_a_step_by_itself():
    model = torch.nn.Linear(2, 1)
    before, scaler = model.weight.clone(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    scaler.scale(model(torch.ones(1, 2)).sum()).backward()
    _discard_gradient(SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler)), model)
    scaler.step(optimizer)
    assert torch.equal(model.weight, before)


SYNCHRONISED = ("--model.decorrelation", "svd-exact", "--model.decorrelation_options.synchronised", "true")


@pytest.mark.slow
@pytest.mark.parametrize("model", [GAP, layer("svd-exact"), SYNCHRONISED], ids=["gap", "svd-exact", "synchronised"])
def test_two_processes_stop_together(train, small, tmp_path, model):
    rarely = ("--trainer.log_every_n_steps", 100)
    run = train(*small.start, *small.two, *model, *rarely, *small.fault("Poison", steps="[5]", rank=1), cwd=tmp_path)
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if line.startswith("error: step 5: ")]
    assert len(lines) == 2
    assert all("rank 1 of 2, train/loss is nan: the batch contains non-finite values" in line for line in lines)


@pytest.mark.slow
def test_two_processes_stop_together_after_validation(train, small, tmp_path):
    fault = small.fault("Poison", steps="[4]", what="validation", rank=1)
    run = train(*small.start, *small.two, *layer("svd-exact"), *fault, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.count("error: val/loss is nan after step 4: rank 1 of 2, svd-exact pooling of 64 -> 4") == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", [(), SYNCHRONISED], ids=["pooling", "synchronised"])
def test_two_processes_skip_together(train, small, tmp_path, model):
    skip = ("--non_finite.policy", "skip", "--non_finite.patience", 2, *model)
    skip += ("--trainer.callbacks+=ConditionNumberMonitor",)
    run = train(*small.start, *small.two, *skip, *small.fault("Poison", steps="[1, 5, 6]", rank=1), cwd=tmp_path)
    assert run.returncode == 1
    lines = [line for line in run.stderr.splitlines() if "rank 1 of 2, train/loss is nan: the batch contains" in line]
    starts = ("skipped, 1 steps so far: step 1: ", "skipped, 2 steps so far: step 5: ", "error: step 6: ")
    for start, times in zip(starts, (1, 1, 2), strict=True):
        assert sum(start in line for line in lines) == times
    assert sum("; that is 2 steps in a row" in line for line in lines) == 2
    checkpoint = small.read(tmp_path)
    assert checkpoint["epoch"] == 0
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())

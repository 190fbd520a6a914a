"""Decompositions that fail in known steps, and their numbers in the event file and the last line.

The failures are injected (`tests.callbacks.parts.Breaker`): LAPACK is not known to fail on any finite matrix.
"""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from callbacks import SVDFailureCounter
from tests.callbacks.parts import Breaker, Fixed, Plain

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*eigendecompositions failed")

BATCH, STEPS = 4, 6
"""Images in a batch, batches in an epoch."""


def fit(folder, model, *callbacks, epochs=2, ckpt_path=None, **arguments):
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, enable_progress_bar=False, enable_model_summary=False,
        logger=TensorBoardLogger(folder, name=None, version="", default_hp_metric=False),
        callbacks=[*callbacks], log_every_n_steps=1, **{"num_sanity_val_steps": 0, **arguments},
    )  # fmt: skip
    trainer.fit(model, datamodule=Fixed(BATCH), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def values(scalars, folder):
    found = {}
    for tag, logged in scalars(folder).items():
        if tag.startswith("svd/"):
            found[tag.removeprefix("svd/")] = [value for _, value in logged]
    return found


@pytest.mark.parametrize(
    ("steps", "fault", "totals"),
    [
        # in each broken batch one call of `eigh` for the batch, then one for each matrix
        ([1, 2, 7], "retried", {"failures": [8, 12], "not_converged": [8, 12], "solved_on_cpu": [8, 12]}),
        ([7, 11], "iterated", {"failures": [0, 8], "not_converged": [0, 8], "solved_by_iteration": [0, 8]}),
        # the sampled check looks at the first of 50 calls
        ([0, 1], "wrong", {"failures": [4, 4], "silently_wrong": [4, 4], "solved_on_cpu": [4, 4]}),
        ([], "retried", {}),
    ],
)
def test_totals_of_the_run(steps, fault, totals, tmp_path, scalars, caplog):
    model = Plain("svd-pade")
    with caplog.at_level("INFO", "pytorch_lightning.utilities.rank_zero"):
        fit(tmp_path, model, Breaker(steps, fault), SVDFailureCounter())
    logged = values(scalars, tmp_path)
    first, last = totals.get("failures", [0, 0])
    names = ("failures", "not_converged", "silently_wrong", "solved_on_cpu", "solved_by_iteration")
    expected = {name: totals.get(name, [0, 0]) for name in names}
    assert logged == {**expected, "failures_epoch": [first, last - first], "validation_failures": [0, 0]}
    assert all(p.isfinite().all() for p in model.parameters())
    (line,) = (message for message in caplog.messages if message.startswith("eigendecompositions"))
    assert line == (
        f"eigendecompositions that failed in training: {last}; {expected['not_converged'][1]} not converged, "
        f"{expected['silently_wrong'][1]} silently wrong; {expected['solved_on_cpu'][1]} solved on the CPU, "
        f"{expected['solved_by_iteration'][1]} by iteration; 12 batches decomposed, of all processes; in validation: 0"
    )


def test_validation_counts_for_itself_and_the_sanity_check_not_at_all(tmp_path, scalars):
    # validated after 3 and after 6 batches; of the two the second comes at global step 6
    breaker = Breaker([6], in_validation=True)
    fit(tmp_path, Plain(), breaker, Breaker([4]), SVDFailureCounter(), val_check_interval=3, num_sanity_val_steps=1)
    logged = values(scalars, tmp_path)
    assert (logged["failures"], logged["validation_failures"]) == ([4, 4], [4, 4])


def test_every_layer_has_its_tags(tmp_path, scalars):
    fit(tmp_path, Plain(layers=2), Breaker([1]), SVDFailureCounter())
    logged = values(scalars, tmp_path)
    assert logged["failures"] == [8, 8]
    assert logged["failures_epoch"] == [8, 0]
    assert logged["failures/pooling.whole"] == logged["failures/pooling.part"] == [4, 4]


def test_a_resumed_run_counts_on(tmp_path, scalars):
    for epochs, path in ((1, None), (3, tmp_path / "last.ckpt")):
        last = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        fit(tmp_path, Plain(), Breaker([1, 8]), SVDFailureCounter(), last, epochs=epochs, ckpt_path=path)
    logged = values(scalars, tmp_path)
    assert (logged["failures"], logged["failures_epoch"]) == ([4, 8, 8], [4, 4, 0])


def test_a_checkpoint_of_validation_holds_the_epoch_before_it(tmp_path):
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    fit(tmp_path, Plain(), Breaker([1]), SVDFailureCounter(), best, epochs=1)
    stored = torch.load(tmp_path / "best.ckpt", weights_only=True)["callbacks"]["SVDFailureCounter"]
    assert stored["training"]["pooling"]["not_converged"] == 4
    assert stored["training"]["pooling"]["calls"] == STEPS


def test_a_new_run_counts_from_zero(tmp_path, scalars):
    counter, model = SVDFailureCounter(), Plain()
    fit(tmp_path / "one", model, Breaker([1]), counter)
    fit(tmp_path / "two", model, Breaker([7]), counter)  # the layer itself counts on
    assert values(scalars, tmp_path / "one")["failures"] == [4, 4]
    assert values(scalars, tmp_path / "two")["failures"] == [0, 4]


def test_nothing_to_count(tmp_path, scalars):
    with pytest.warns(UserWarning, match="SVDFailureCounter: the model has no layer with a covariance"):
        fit(tmp_path, Plain("gap"), SVDFailureCounter())
    assert values(scalars, tmp_path) == {}

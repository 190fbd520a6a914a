"""The callbacks with a LightningModule of the user's, in plain Lightning. Their docstrings say what it must offer."""

import pytest
import torch

from callbacks import (
    ConditionNumberMonitor,
    FiniteCheckpoints,
    FiniteEvaluation,
    GradientSmoothness,
    HybridProtocol,
    LastCheckpoint,
    LossLandscape,
    NearestOrthogonalGradient,
    NonFinitePolicy,
    OptimalLearningRate,
    OrthogonalLoss,
    SameCheckpoint,
    StopOnSignal,
    SVDFailureCounter,
)
from tests.callbacks.own_module import OwnModule, Treated, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore:OptimalLearningRate with", "ignore:.*cannot resume mid-epoch")

ANY = (ConditionNumberMonitor, FiniteCheckpoints, FiniteEvaluation, LastCheckpoint, NonFinitePolicy, SameCheckpoint,
       StopOnSignal, SVDFailureCounter)  # fmt: skip
"""Callbacks that work with every LightningModule."""


def test_every_module(tmp_path):
    run = trainer(tmp_path, *(callback() for callback in ANY), enable_checkpointing=True)
    run.fit(OwnModule(), loader())
    assert {"covariance/rank_epoch", "svd/failures"} <= run.callback_metrics.keys()


def test_monitors_and_treatments_of_a_module_that_offers_what_they_need(tmp_path):
    treatments = (OrthogonalLoss(), NearestOrthogonalGradient(), OptimalLearningRate())
    run = trainer(tmp_path, GradientSmoothness(1, [1.0]), LossLandscape(1, points=2), *treatments)
    run.fit(Treated(), loader())
    found = run.callback_metrics
    tags = ("smoothness/beta", "landscape/loss_max", "orthogonal_loss/value", "nog/gradient_norm", "olr/learning_rate")
    assert all(found[tag].isfinite() for tag in tags)


class NoGroup(Treated):
    configure_optimizers = OwnModule.configure_optimizers


class GivesGroup(NoGroup):
    """Gives a parameter a group of its own on request."""

    def give_own_parameter_group(self, parameter):
        self.apart = parameter

    def configure_optimizers(self):
        rest = [parameter for parameter in self.parameters() if parameter is not self.apart]
        return torch.optim.SGD([{"params": rest}, {"params": [self.apart]}], lr=0.1)


def test_a_parameter_group_on_request(tmp_path):
    run = trainer(tmp_path, OptimalLearningRate(), max_steps=1)
    run.fit(GivesGroup(), loader())
    assert [len(group["params"]) for group in run.optimizers[0].param_groups] == [6, 1]


@pytest.mark.parametrize(
    ("callback", "module", "message"),
    [
        (NearestOrthogonalGradient, OwnModule, "OwnModule has no property pre_svd_layer"),
        (OrthogonalLoss, OwnModule, "OwnModule has no property pre_svd_layer"),
        (OptimalLearningRate, OwnModule, "OwnModule has no property pre_svd_layer"),
        (OptimalLearningRate, NoGroup, "NoGroup must give the pre-SVD layer's weight a parameter group of its own"),
        (GradientSmoothness, OwnModule, r"OwnModule has no method loss\(batch\)"),
        (LossLandscape, OwnModule, r"OwnModule has no method loss\(batch\)"),
        (HybridProtocol, OwnModule, r"OwnModule has no meta-layer .* use_meta_layer\(name, options\)"),
    ],
)
def test_one_line_names_what_is_missing(callback, module, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        trainer(tmp_path, callback()).fit(module(), loader())
    assert "\n" not in str(error.value)


def test_a_loss_that_is_a_criterion_is_not_the_method(tmp_path):
    module = OwnModule()
    module.loss = torch.nn.CrossEntropyLoss()
    with pytest.raises(ValueError, match=r"has no method loss\(batch\)"):
        trainer(tmp_path, GradientSmoothness()).fit(module, loader())

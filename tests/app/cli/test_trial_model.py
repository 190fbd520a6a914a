"""The model that a checkpoint asks for, built without memory."""

import pytest
import torch
from jsonargparse import Namespace

from app.cli.trial_model import check_model
from app.models.classifier import Classifier
from app.spectral import METHODS

ARGUMENTS = {"num_classes": 6, "backbone": "compact", "dim": 32, "meta_layer": "isqrt-cov"}
STATE = Classifier(**ARGUMENTS).state_dict()


def check(classes_are_given=False, class_path="app.models.classifier.Classifier", **changes):
    model = Namespace(class_path=class_path, init_args=Namespace(**{**ARGUMENTS, "optimizer": object(), **changes}))
    check_model(model, STATE, classes_are_given)


@pytest.mark.parametrize("method", METHODS)
def test_any_method_is_built(method):
    check(meta_layer=method)
    if method != "svd-topn":
        check(meta_layer="gap", decorrelation=method, decorrelation_options={"groups": 4})


@pytest.mark.parametrize("treatment", ["spectral", "orthogonal"])
def test_a_treated_weight_is_built(treatment):
    check(weight_treatment=treatment)


def test_random_numbers_are_left_as_they_were():
    before = torch.get_rng_state()
    check()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": None}, "num_classes is missing"),
        ({"num_classes": 10**9}, r"a model of 5\.3e\+11 numbers, and holds 8\.5e\+04"),
        ({"num_classes": 1}, "at least 2"),
        ({"backbone": "resnet999"}, "resnet999"),
        ({"dim": 10**9}, "dim must lie between 2 and the 64 channels"),
        ({"meta_layer": "svd-other"}, "unknown meta_layer 'svd-other'"),
        ({"meta_options": {"iterations": 10**9}}, "iterations must be at most 1000"),
        ({"meta_options": {"iterations": "x"}}, "iterations must be a whole number"),
        ({"meta_options": {"nothing": 3}}, "takes no option 'nothing'"),
        ({"meta_layer": "svd-pade", "meta_options": {"pade_degree": 10**9}}, "pade_degree must be at most 1000"),
        ({"meta_layer": "svd-taylor", "meta_options": {"taylor_degree": 10**9}}, "taylor_degree must be at most 1000"),
        ({"meta_layer": "svd-topn", "meta_options": {"topn": 10**9}}, "topn must be at most"),
        ({"meta_layer": "ns-minimax", "meta_options": {"iterations": 10**9}}, "iterations must be at most 1000"),
        ({"meta_layer": "ns-minimax", "meta_options": {"floor": float("nan")}}, "floor must lie between 0 and 1"),
        ({"decorrelation": "svd-exact", "decorrelation_options": {"groups": -1}}, "groups must divide"),
        ({"decorrelation": "isqrt-cov", "decorrelation_options": {"iterations": 10**9}}, "at most 1000"),
    ],
)
def test_arguments_that_make_no_model(changes, message):
    with pytest.raises(ValueError, match=message):
        check(**changes)


def test_the_number_of_classes_may_be_that_of_the_data():
    check(classes_are_given=True, num_classes=None)
    check(classes_are_given=True, num_classes=10**9)


def test_classes_and_objects_of_the_users_are_not_built():
    check(class_path="my.Model", num_classes=None)
    check(meta_layer=Namespace(class_path="my.Method"), num_classes=None)
    check(backbone={"class_path": "my.Backbone"}, num_classes=None)

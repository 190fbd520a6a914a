"""The classifier with a decorrelated batch norm and treatments of its pre-SVD layer."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from app.layers import DecorrelatedBatchNorm2d, original_weight, treatment_of
from app.models.backbones import build_backbone
from app.models.classifier import Classifier
from app.models.decorrelation import decorrelate, decorrelated_convolution


def small(**arguments):
    defaults = {"num_classes": 3, "backbone": "compact", "meta_layer": "gap", "decorrelation": "svd-exact"}
    return Classifier(**{**defaults, **arguments})


def loader():
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, torch.arange(8) % 3), batch_size=4)


def trainer(tmp_path):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return pl.Trainer(default_root_dir=tmp_path, max_epochs=1, enable_checkpointing=False, **quiet)


@pytest.mark.parametrize(
    ("name", "stem", "norm", "convolution", "kernel"),
    [
        ("resnet50", "cifar", "bn1", "conv1", 3),
        ("resnet18", "imagenet", "bn1", "conv1", 7),
        ("compact", "imagenet", "stage1.1", "stage1.0", 3),
        ("mobilenet_v2", "imagenet", "features.0.1", "features.0.0", 3),
    ],
)
def test_first_batch_norm_is_decorrelated_and_names_the_convolution_before(name, stem, norm, convolution, kernel):
    backbone = build_backbone(name, "kept", stem)
    before = {key: type(module) for key, module in backbone.named_modules()}
    decorrelate(backbone, "svd-pade", {"groups": 4, "options": {"pade_degree": 50}})
    after = {key: type(module) for key, module in backbone.named_modules()}
    assert {key for key in before if before[key] is not after[key]} == {norm}
    layer = backbone.get_submodule(norm)
    assert isinstance(layer, DecorrelatedBatchNorm2d)
    assert (layer.method, layer.groups, layer.options) == ("svd-pade", 4, {"pade_degree": 50})
    assert decorrelated_convolution(backbone) is backbone.get_submodule(convolution)
    assert backbone.get_submodule(convolution).kernel_size == (kernel, kernel)


def test_pre_svd_layer():
    model = small()
    assert model.pre_svd_layer is model.backbone.stage1[0]
    # with both, it is that of the decorrelated batch norm
    both = small(meta_layer="isqrt-cov", dim=8)
    assert both.pre_svd_layer is both.backbone.stage1[0]
    assert small(decorrelation=None).pre_svd_layer is None


def test_a_network_without_the_option_has_not_changed():
    model = small(decorrelation=None)
    assert not any(isinstance(module, DecorrelatedBatchNorm2d) for module in model.modules())
    assert isinstance(model.backbone.stage1[1], nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decorrelation": "zca"}, "unknown method 'zca'"),
        ({"backbone": "alexnet"}, "replaces the first batch norm, but this backbone has none"),
        (
            {"decorrelation_options": {"group": 3}},
            r"takes no option 'group' .* own options are affine, eps, groups",
        ),
        ({"decorrelation_options": {"groups": 3}}, "groups must divide the 32 channels, got 3"),
        ({"decorrelation": None, "decorrelation_options": {"groups": 2}}, "given without decorrelation"),
        ({"decorrelation": None, "weight_treatment": "spectral"}, "weight_treatment spectral has no layer to act on"),
        ({"weight_treatment": "cayley"}, "unknown weight_treatment 'cayley'"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_treatments_leave_every_other_initial_weight_as_it_was():
    states = []
    for treatment in (None, "spectral", "orthogonal"):
        torch.manual_seed(0)
        model = small(weight_treatment=treatment)
        assert treatment_of(model.pre_svd_layer) == treatment
        states.append([p.clone() for p in (original_weight(model.pre_svd_layer), *model.classifier.parameters())])
    assert all(torch.equal(a, b) for other in states[1:] for a, b in zip(states[0], other, strict=True))


@pytest.mark.parametrize("head", [{}, {"meta_layer": "svd-exact", "dim": 8, "decorrelation": None}], ids=["dbn", "gcp"])
@pytest.mark.parametrize("treatment", ["spectral", "orthogonal"])
def test_trains_and_checkpoints_load_with_and_without(treatment, head, tmp_path):
    torch.manual_seed(0)
    model = small(weight_treatment=treatment, **head)
    run = trainer(tmp_path)
    run.fit(model, loader())
    run.save_checkpoint(tmp_path / "a.ckpt")
    x = torch.randn(2, 3, 16, 16)
    expected = model.eval()(x)
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert torch.equal(again(x), expected)
    without = Classifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True, weight_treatment=None).eval()
    assert treatment_of(without.pre_svd_layer) is None
    torch.testing.assert_close(without(x), expected)
    # and dropped for inference
    again.remove_weight_treatment()
    torch.testing.assert_close(again(x), expected)
    assert again.hparams["weight_treatment"] is None
    assert again.state_dict().keys() == without.state_dict().keys()


def test_pre_svd_weight_has_its_own_group_where_asked_for():
    model = small(weight_treatment="orthogonal")
    assert len(model.configure_optimizers()["optimizer"].param_groups) == 2
    model.give_own_parameter_group(original_weight(model.pre_svd_layer))
    model.give_own_parameter_group(original_weight(model.pre_svd_layer))  # it has one already
    groups = model.configure_optimizers()["optimizer"].param_groups
    assert len(groups) == 3
    assert [p is original_weight(model.pre_svd_layer) for p in groups[2]["params"]] == [True]
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in model.parameters())

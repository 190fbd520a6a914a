import pytest
import torch

from app.models.reference_names import classifier_on_upper_triangle, our_name


@pytest.mark.parametrize(
    ("name", "resnet", "expected"),
    [
        ("module.features.module.5.1.conv2.weight", True, "backbone.layer2.1.conv2.weight"),
        ("features.5.1.conv.0.0.weight", False, "backbone.features.5.1.conv.0.0.weight"),
        ("features.10.weight", False, "backbone.features.10.weight"),
        ("features.8.weight", True, "pooling.reduction.0.weight"),
        ("layer_reduce_bn.running_var", True, "pooling.reduction.1.running_var"),
        ("representation.conv_dr_block.1.bias", False, "pooling.reduction.1.bias"),
        ("module.module.fc.bias", True, "classifier.bias"),
        ("fc.bias", True, "classifier.bias"),
        ("backbone.layer1.0.conv1.weight", True, "backbone.layer1.0.conv1.weight"),
    ],
)
def test_names(name, resnet, expected):
    assert our_name(name, resnet) == expected


@pytest.mark.parametrize(("entries", "inputs"), [(16, 11), (15, 10)])
def test_a_classifier_of_another_size_is_returned_as_it_is(entries, inputs):
    weight = torch.randn(3, entries)
    assert classifier_on_upper_triangle(weight, inputs) is weight

"""Weights of other programs: files of their form, made by torchvision's networks under their names."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision import models

from app.models.classifier import Classifier


def reference_resnet(classes=1000):
    """The ResNet-18 of fast-MPN-COV: torchvision's, with a reduction of 16 channels and a classifier on 136 inputs."""
    network = models.resnet18()
    del network.avgpool, network.fc
    network.layer_reduce, network.layer_reduce_bn = nn.Conv2d(512, 16, 1, bias=False), nn.BatchNorm2d(16)
    network.layer_reduce_relu, network.fc = nn.ReLU(), nn.Linear(136, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    return network


def in_three_parts(network):
    """The same after their reconstruction: features, representation, classifier."""
    children = list(network.children())
    parts = nn.Module()
    parts.features = nn.Sequential(*children[:8])
    parts.representation = nn.Module()
    parts.representation.conv_dr_block = nn.Sequential(*children[8:11])
    parts.classifier = network.fc
    return parts


def in_two_parts(network):
    """A pre-trained one, whose features hold the reduction too."""
    children = list(network.children())
    parts = nn.Module()
    parts.features, parts.classifier = nn.Sequential(*children[:11]), network.fc
    return parts


def parallel(network):
    """DataParallel around the features only, as they train."""
    network.features = nn.DataParallel(network.features)
    return network


FORMS = {
    "plain": lambda network: network.state_dict(),
    "state_dict": lambda network: {"epoch": 3, "arch": "x", "state_dict": network.state_dict(), "optimizer": {}},
    "parallel": lambda network: {"state_dict": nn.DataParallel(network).state_dict()},
    "three parts": lambda network: in_three_parts(network).state_dict(),
    "three parts, parallel": lambda network: {"state_dict": parallel(in_three_parts(network)).state_dict()},
    "two parts, parallel": lambda network: {"state_dict": parallel(in_two_parts(network)).state_dict()},
    "without counters": lambda network: {
        key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")
    },
}


def classifier(path=None, **arguments):
    options = {"num_classes": 10, "backbone": "resnet18", "dim": 16, "init_from": path and str(path)}
    return Classifier(**{**options, **arguments})


@pytest.mark.parametrize("form", FORMS)
def test_reference_checkpoints(form, tmp_path):
    torch.manual_seed(0)
    reference = reference_resnet(classes=10).eval()
    for block in reference.layer4.modules():
        if isinstance(block, nn.Conv2d):
            block.stride = (1, 1)
    path = tmp_path / "model_best.pth.tar"
    torch.save(FORMS[form](reference), path)
    model = classifier(path).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        features = nn.Sequential(*list(reference.children())[:11])(images)
        torch.testing.assert_close(model.pooling.reduction(model.backbone(images)), features)
        # the same classifier on the same upper triangle, row by row
        torch.testing.assert_close(model(images), reference.fc(model.pooling(model.backbone(images))))


def test_a_classifier_of_other_classes_stays_new(tmp_path, caplog):
    torch.save(reference_resnet(1000).state_dict(), tmp_path / "a.pth")
    with caplog.at_level("INFO"):
        model = classifier(tmp_path / "a.pth")
    assert model.classifier.out_features == 10
    assert "loaded 126 tensors of backbone, pooling" in caplog.text
    assert "not loaded: classifier.weight (1000x136 in the file, 10x136 here), classifier.bias (1000" in caplog.text


def test_alexnet_of_the_reference_has_batch_norm(tmp_path):
    source = classifier(backbone="alexnet_bn", dim=None)
    names = {f"module.{name.removeprefix('backbone.')}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": names}, tmp_path / "a.pth")
    model = classifier(tmp_path / "a.pth", backbone="alexnet_bn", dim=None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 5


def test_torchvision_weights_and_a_missing_reduction(tmp_path, caplog):
    network = models.mobilenet_v2()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    with caplog.at_level("INFO"):
        model = classifier(tmp_path / "a.pth", backbone="mobilenet_v2")
    assert torch.equal(model.backbone.features[18][0].weight, network.features[18][0].weight)
    assert "left as initialised: pooling.reduction.0.weight, pooling.reduction.1.weight" in caplog.text
    assert "in the file, not used: classifier.1.weight, classifier.1.bias" in caplog.text


def test_vectors_that_fit_by_accident_are_nothing(tmp_path):
    torch.save(in_three_parts(reference_resnet()).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"nothing of .*a.pth fits this backbone"):
        classifier(tmp_path / "a.pth", backbone="alexnet_bn", dim=None)


def test_another_depth_is_a_warning_and_another_network_an_error(tmp_path):
    path = tmp_path / "resnet34.pth"
    torch.save(models.resnet34().state_dict(), path)
    with pytest.warns(UserWarning, match=r"resnet34.pth: in the file, not used: backbone.layer1.2.conv1.weight"):
        classifier(path)
    with pytest.raises(
        ValueError, match=r"nothing of .*resnet34.pth fits .*it holds backbone.conv1.weight, .*features"
    ):
        classifier(path, backbone="alexnet")
    with pytest.warns(UserWarning, match="nothing of .* fits this backbone"):
        classifier(path, backbone="alexnet", init_from_required=False)


def test_no_half_layers(tmp_path):
    source = classifier(num_classes=10, meta_layer="gap")
    torch.save(source.state_dict(), tmp_path / "a.pth")
    model = classifier(tmp_path / "a.pth")
    assert torch.equal(model.backbone.conv1.weight, source.backbone.conv1.weight)
    assert not torch.equal(model.classifier.bias, source.classifier.bias)
    source = classifier(dim=8)
    nn.init.normal_(source.pooling.reduction[1].running_mean)
    torch.save(source.state_dict(), tmp_path / "b.pth")
    # the batch norm of 16 channels would fit a reduction of other inputs
    wider = classifier(backbone="resnet50", dim=8, init_from=None)
    state = {f"backbone.{k}": v for k, v in models.resnet50().state_dict().items()}
    torch.save({**source.state_dict(), **state}, tmp_path / "c.pth")
    wider = classifier(tmp_path / "c.pth", backbone="resnet50", dim=8)
    assert not wider.pooling.reduction[1].running_mean.any()


def test_the_reduction_of_another_backbone_is_nothing(tmp_path):
    torch.save(classifier(backbone="compact").state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"nothing of .*a.pth fits this backbone"):
        classifier(tmp_path / "a.pth")


def test_a_classifier_on_all_entries_becomes_one_on_the_upper_triangle(tmp_path):
    torch.manual_seed(0)
    reference = reference_resnet(10)
    reference.fc = nn.Linear(16 * 16, 10)
    torch.save(reference.state_dict(), tmp_path / "a.pth")
    model = classifier(tmp_path / "a.pth")
    Q = torch.randn(3, 16, 16)
    Q = Q + Q.mT
    pooled = Q.flatten(1)[:, model.pooling.upper_triangle]
    torch.testing.assert_close(model.classifier(pooled), reference.fc(Q.flatten(1)))


def test_random_weights_are_not_evaluated(tmp_path):
    torch.save(reference_resnet(1000).state_dict(), tmp_path / "a.pth")
    model = classifier(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"evaluated with random weights: classifier.weight .* and 1 more"):
        model.setup("validate")


def test_two_sources_of_weights():
    with pytest.raises(ValueError, match="two sources of weights"):
        classifier("a.pth", weights="IMAGENET1K_V1", backbone="resnet18")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"init_from: .*none.pth is not a file: give another file, or null"):
        classifier(tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv1.weight": torch.zeros(64, 3, 7, 7).to_sparse()},
            "conv1.weight is not an ordinary tensor of real numbers",
        ),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7, dtype=torch.complex64)}, "conv1.weight is not an ordinary tensor"),
        ({"conv1.weight": [0.0]}, "holds no dictionary of tensors"),
        ({"fc.weight": torch.zeros(9)}, None),  # of another shape
    ],
)
@pytest.mark.parametrize("key", ["init_from", "weights"])
def test_tensors_that_are_none(tmp_path, key, change, message):
    path = str(tmp_path / "odd.pth")
    torch.save(models.resnet18().state_dict() | change, path)
    refused = pytest.raises(ValueError, match=f"model.{key}: .*{message}.*: give another file") if message else None
    with refused or nullcontext():
        Classifier(10, backbone="resnet18", dim=16, **{key: path})


def saved(tmp_path, **changes):
    """A file of this program's weights, with other entries."""
    source = classifier(backbone="compact", dim=16)
    torch.save({**source.state_dict(), **changes}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"module.backbone.stage1.0.weight": torch.zeros(32, 3, 3, 3)},
            "two tensors for backbone.stage1.0.weight: ",
        ),
        ({"classifier.bias": torch.full((10,), torch.inf)}, "classifier.bias contains non-finite values"),
        ({"backbone.stage1.0.weight": torch.ones(32, 3, 3, 3, dtype=torch.long)}, "int64 in the file, float32 here"),
        ({"backbone.stage1.1.num_batches_tracked": torch.tensor(1.5)}, "float32 in the file, int64 here"),
        ({"classifier.weight": torch.zeros(1).expand(2**24, 256)}, r"classifier.weight declares 1\.7e\+10 bytes"),
    ],
)
def test_entries_that_would_be_another_network(tmp_path, changes, message):
    path = saved(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"model.init_from: .*a.pth.*{message}"):
        classifier(path, backbone="compact")


def test_a_classifier_of_other_classes_is_not_computed_on(tmp_path, caplog):
    path = saved(tmp_path, **{"classifier.weight": torch.zeros(1).expand(1000, 256)})
    with caplog.at_level("INFO"):
        classifier(path, backbone="compact")
    assert "classifier.weight (1000x256 in the file, 10x136 here)" in caplog.text


def test_names_from_a_file_are_printed_without_control_characters(tmp_path, caplog):
    path = saved(tmp_path, **{"classifier.\x1b[2J\x07": torch.zeros(1), "classifier." + "x" * 10**6: torch.zeros(1)})
    with caplog.at_level("INFO"):
        classifier(path, backbone="compact")
    assert "classifier.\\x1b[2J\\x07" in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 5000

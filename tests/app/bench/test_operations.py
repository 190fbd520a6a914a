"""Multiply-adds: the published ones, and those of eigendecompositions."""

import pytest
import torch
from torch import nn

from app.bench.operations import multiply_adds
from app.models.classifier import Classifier


def test_multiply_adds_are_the_published_ones():
    # CVPR 2020, supplement, table 1: 1.81 G and 11.69 M, 3.11 G and 19.60 M (which has a little more than we know of)
    for meta_layer, operations, parameters in (("gap", 1.81e9, 11.69e6), ("isqrt-cov", 3.11e9, 19.60e6)):
        model = Classifier(1000, "resnet18", meta_layer, dim=128)
        assert multiply_adds(model, torch.zeros(1, 3, 224, 224))[0] == pytest.approx(operations, rel=0.01)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.006)


def test_decompositions_are_counted_by_formula():
    class Decomposition(nn.Module):
        def forward(self, x):
            return torch.linalg.eigh(x @ x)[0]

    decompositions = 5 * 4.5 * 6**3
    matrices = torch.eye(6).expand(5, 6, 6)
    assert multiply_adds(Decomposition(), matrices) == (decompositions + 5 * 6**3, decompositions)


def test_the_route_of_a_layer_shows_in_its_multiply_adds():
    for route, decomposes in (("eigenbasis", True), ("products", False)):
        model = Classifier(6, "compact", dim=8, meta_options={"route": route})
        assert (multiply_adds(model, torch.zeros(1, 3, 32, 32))[1] > 0) == decomposes

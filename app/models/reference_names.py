"""The names that other programs give to the tensors of their networks, mapped to the names of the same tensors here.

The names here are ``backbone.<torchvision's name>``, ``pooling.reduction.0`` (1x1 convolution), ``pooling.reduction.1``
(its batch norm) and ``classifier``. The other programs are torchvision, fast-MPN-COV and DifferentiableSVD.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

REDUCTION = {
    "layer_reduce": "pooling.reduction.0",  # fast-MPN-COV, DifferentiableSVD: src/network/mpncovresnet.py
    "layer_reduce_bn": "pooling.reduction.1",
    "representation.conv_dr_block.0": "pooling.reduction.0",  # the same, src/representation/MPNCOV.py
    "representation.conv_dr_block.1": "pooling.reduction.1",
}
"""The dimension reduction before the covariance."""

IN_ORDER = {
    "features.0": "backbone.conv1",
    "features.1": "backbone.bn1",
    "features.2": "backbone.relu",
    "features.3": "backbone.maxpool",
    "features.4": "backbone.layer1",
    "features.5": "backbone.layer2",
    "features.6": "backbone.layer3",
    "features.7": "backbone.layer4",
    "features.8": "pooling.reduction.0",
    "features.9": "pooling.reduction.1",
}
"""ResNets that were made a Sequential (src/network/base.py): numbers stand for torchvision's names of the children."""


def our_name(name: str, resnet: bool) -> str:
    """The name here of a tensor from torchvision, fast-MPN-COV, DifferentiableSVD, or a run of this program.

    Args:
        name: the name in the file, where DataParallel may have put ``module.`` anywhere.
        resnet: whether the network is a ResNet, where ``features.N`` counts its children. AlexNet and MobileNetV2 have
            a part called `features` anyway.
    """
    name = re.sub(r"\bmodule\.", "", name)
    table = {**REDUCTION, "fc": "classifier"}
    if resnet:
        table |= IN_ORDER
    for theirs, ours in table.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    if name.startswith(("backbone.", "pooling.", "classifier.")):
        return name
    return f"backbone.{name}"


def classifier_on_upper_triangle(weight: Tensor, inputs: int) -> Tensor:
    """A classifier ``(K, d d)`` on all entries of a symmetric matrix, for its upper triangle ``(K, d (d + 1) / 2)``.

    DifferentiableSVD's ResNet has one. The entries (i, j) and (j, i) are equal, so their weights add up.

    Args:
        weight: the weight of the file; one of any other shape is returned as it is.
        inputs: number of inputs of the classifier here.
    """
    d = round(weight.shape[1] ** 0.5)
    if weight.shape[1] != d * d or inputs != d * (d + 1) // 2:
        return weight
    square = weight.unflatten(1, (d, d))
    rows, columns = torch.triu_indices(d, d)
    return (square + square.mT - torch.diag_embed(square.diagonal(dim1=1, dim2=2)))[:, rows, columns]

"""torch.compile of a module that uses a layer: the graph breaks at the layer, the numbers stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from app.spectral import covariance_sqrt


class Pooling(nn.Module):
    def __init__(self, method, **options):
        super().__init__()
        self.reduce = nn.Conv1d(6, 4, 1, dtype=torch.float64)
        self.method, self.options = method, options

    def forward(self, X):
        return covariance_sqrt(self.reduce(X).relu(), self.method, **self.options).flatten(1) + 1


@pytest.mark.parametrize(
    ("method", "options"),
    [("svd-exact", {}), ("svd-pade", {}), ("isqrt-cov", {}), ("ns-minimax", {"route": "products"})],
    ids=lambda value: str(value),
)
def test_compiled_module(method, options, normal):
    torch.manual_seed(0)
    module, X = Pooling(method, **options), normal(3, 6, 9)
    # the eager backend records and splits the graph as any other does; what compiles the pieces is not ours to test
    compiled = torch.compile(module, backend="eager")
    results = []
    for run in (module, compiled):
        module.zero_grad()
        Q = run(X)
        Q.square().sum().backward()
        results.append((Q.detach(), module.reduce.weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])

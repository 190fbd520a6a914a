"""The references in extended precision against the layers, and their gradient against a difference quotient."""

import mpmath
import numpy as np
import pytest
import torch

from app.tables.layer_errors import ITERATIONS, layer_result
from app.tables.reference import DIGITS, Reference


@pytest.mark.parametrize("N", [4, 9])
@pytest.mark.parametrize("name", ["svd-exact", *ITERATIONS])
def test_layers_agree_with_the_references(N, name):
    rng = np.random.default_rng(0)
    X, G = rng.standard_normal((6, N)), rng.standard_normal((6, 6))
    G = (G + G.T) / 2
    Q, gradient = layer_result(torch.from_numpy(X)[None], torch.from_numpy(G)[None], name, torch.float64)
    with mpmath.workdps(DIGITS):
        reference = Reference(X, G)
        if name == "svd-exact":
            Q_true, gradient_true = reference.exact()
        else:
            Q_true, gradient_true = reference.iteration(ITERATIONS[name])
    if name != "svd-newton":
        np.testing.assert_allclose(Q[0], Q_true, atol=1e-12)
    np.testing.assert_allclose(gradient[0], gradient_true, atol=1e-12)


def test_reference_gradient_is_a_derivative():
    rng = np.random.default_rng(0)
    X, H, G = rng.standard_normal((4, 3)), 1e-15 * rng.standard_normal((4, 3)), np.eye(4)

    def loss(features):
        s = Reference(features, G).factors[0]  # tr Q, in extended precision
        return s.sum()

    with mpmath.workdps(DIGITS):
        change = loss(X + H) - loss(X - H)
        step = (X + H) - (X - H)  # what the doubles really moved
        expected = (Reference(X, G).exact()[1] * step).sum()
    assert float(change) == pytest.approx(expected, rel=1e-10)

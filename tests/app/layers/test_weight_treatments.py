import copy
import warnings

import pytest
import scipy.linalg
import torch
from torch import nn

from app.layers import OrthogonalWeight, original_weight, remove_weight_treatment, treat_weight, treatment_of
from app.layers.weight_treatments import convert_state

SHAPES = [(64, 3, 3), (6, 6, 1), (5, 12, 1), (3, 17, 1), (40, 2, 2)]
"""C_out, C_in, k: the stem, a square kernel, reductions, and the last two with sides of a ratio above 4."""


def convolution(shape=SHAPES[0], treatment=None, seed=0):
    torch.manual_seed(seed)
    layer = nn.Conv2d(shape[1], shape[0], shape[2], bias=False)
    if treatment is not None:
        treat_weight(layer, treatment)
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_weight_is_orthogonal_after_every_step(shape, dtype):
    layer = convolution(shape).to(dtype)
    treat_weight(layer, "orthogonal")
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    x = torch.randn(4, shape[1], 8, 8, dtype=dtype)
    before = layer.weight.detach().clone()
    for _ in range(3):
        layer(x).square().sin().sum().backward()
        optimizer.step()
        Q = layer.weight.detach().flatten(1)
        gram = Q.mT @ Q if len(Q) > Q.shape[1] else Q @ Q.mT
        # scaling and squaring squares log2 |W - W^T| times, and each time doubles the error
        size = 1 + 2 * original_weight(layer).flatten(1).norm().item()
        tolerance = 10 * size * torch.finfo(dtype).eps
        torch.testing.assert_close(gram, torch.eye(len(gram), dtype=dtype), rtol=0, atol=tolerance)
    assert (layer.weight - before).norm() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_weight_is_the_exponential_of_the_padded_kernel(shape):
    W = torch.randn(shape[0], shape[1], shape[2], shape[2], dtype=torch.float64)
    side = max(shape[0], shape[1] * shape[2] ** 2)
    square = torch.zeros(side, side, dtype=torch.float64)
    square[: shape[0], : W[0].numel()] = W.flatten(1)
    expected = scipy.linalg.expm((square - square.T).numpy())[: shape[0], : W[0].numel()]
    torch.testing.assert_close(OrthogonalWeight()(W), torch.from_numpy(expected.copy()).view_as(W))


def test_a_plane_rotation_by_hand():
    # exp([[0, t], [-t, 0]]) is the rotation by t
    W = torch.tensor([[0.0, 0.3], [0.0, 0.0]]).view(2, 2, 1, 1)
    cos, sin = torch.cos(torch.tensor(0.3)), torch.sin(torch.tensor(0.3))
    expected = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])
    torch.testing.assert_close(OrthogonalWeight()(W).flatten(1), expected)


@pytest.mark.parametrize("shape", [(4, 1, 3, 1), (2, 9, 1, 1), (9, 2, 1, 1)])
def test_gradient_of_the_orthogonal_weight(shape):
    W = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(OrthogonalWeight(), W)


@pytest.mark.parametrize("rows", [torch.zeros(2, 9), torch.ones(2, 9), torch.eye(2, 9)])
def test_gradient_where_the_kernel_is_singular(rows):
    W = rows.double().view(2, 9, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(OrthogonalWeight(), W)


@pytest.mark.parametrize("treatment", ["spectral", "orthogonal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_treatment(dtype, treatment):
    layer = convolution(treatment=treatment).eval()
    expected = layer.weight
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer.weight, expected)
        assert layer(torch.randn(1, 3, 8, 8)).dtype == dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_spectral_normalisation_has_largest_singular_value_one(shape):
    layer = convolution(shape, "spectral")
    for _ in range(200):
        layer.weight  # noqa: B018 - reading it in training makes a step of the power method
    W = layer.eval().weight.flatten(1)
    torch.testing.assert_close(torch.linalg.matrix_norm(W, 2), torch.tensor(1.0), rtol=1e-3, atol=0)
    original = original_weight(layer).flatten(1)
    torch.testing.assert_close(W, original / torch.linalg.matrix_norm(original, 2), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("treatment", ["spectral", "orthogonal"])
def test_removed_for_inference_computes_the_same(treatment):
    layer = convolution(treatment=treatment).eval()
    x = torch.randn(2, 3, 8, 8)
    expected = layer(x)
    assert treatment_of(layer) == treatment
    remove_weight_treatment(layer)
    assert treatment_of(layer) is None
    assert type(layer) is nn.Conv2d
    assert set(layer.state_dict()) == {"weight"}
    assert torch.equal(layer(x), expected)
    remove_weight_treatment(layer)


@pytest.mark.parametrize("stored", [None, "spectral", "orthogonal"])
@pytest.mark.parametrize("own", [None, "spectral", "orthogonal"])
def test_states_with_and_without_load_into_each_other(stored, own):
    source, target = convolution(treatment=stored).eval(), convolution(treatment=own, seed=1).eval()
    state = {f"net.stem.{key}": value for key, value in source.state_dict().items()} | {"net.bn.weight": torch.ones(2)}
    kept = copy.deepcopy(state)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert_state(state, "net.stem.", target)
    assert state.pop("net.bn.weight").tolist() == [1, 1]
    target.load_state_dict({key.removeprefix("net.stem."): value for key, value in state.items()})
    if own == stored:
        assert state.keys() == kept.keys() - {"net.bn.weight"}
    if own == "orthogonal" and stored != "orthogonal":
        assert "it becomes W in exp(W - W^T)" in str(caught[0].message)
        assert torch.equal(original_weight(target), source.weight)
        return
    assert not caught
    expected = source.weight
    if own == "spectral" and stored != "spectral":
        expected = expected / torch.linalg.matrix_norm(expected.flatten(1), 2)
    # the power method is near its end after torch's 15 steps
    torch.testing.assert_close(target.weight, expected, rtol=0.05, atol=1e-6)


def test_unknown_treatment():
    with pytest.raises(ValueError, match="unknown weight_treatment 'cayley'"):
        treat_weight(convolution(), "cayley")

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from app.layers import OrthogonalWeight
from callbacks import NearestOrthogonalGradient, OptimalLearningRate
from callbacks.nearest_orthogonal_gradient import nearest_orthogonal

NAN, INF = float("nan"), float("inf")
SHAPES = [(64, 27), (5, 5), (4, 9)]


@pytest.mark.parametrize(
    ("G", "R"),
    [
        ([[3.0, 0.0], [0.0, -2.0]], [[1.0, 0.0], [0.0, -1.0]]),
        ([[0.0, 5.0, 0.0], [1e-3, 0.0, 0.0]], [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        # the polar factor of [[2, 1], [-1, 2]] = sqrt(5) times a rotation
        ([[2.0, 1.0], [-1.0, 2.0]], [[2 / 5**0.5, 1 / 5**0.5], [-1 / 5**0.5, 2 / 5**0.5]]),
        ([[3.0], [4.0]], [[0.6], [0.8]]),
    ],
)
def test_by_hand(G, R):
    torch.testing.assert_close(nearest_orthogonal(torch.tensor(G))[0], torch.tensor(R))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_is_the_polar_factor_and_the_formula(shape, dtype):
    G = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) * 1e-3
    R, norm, usable = nearest_orthogonal(G)
    assert R.dtype == dtype
    assert usable
    torch.testing.assert_close(norm, G.double().norm())
    # an error of eps in G turns the factor by eps times the condition number, below 100 here
    tolerance = 100 * torch.finfo(dtype).eps
    G = G.double().numpy()
    np.testing.assert_allclose(R.numpy(), scipy.linalg.polar(G)[0], rtol=0, atol=tolerance)
    # eq. (16), on the side where G^T G is regular
    tall = G if shape[0] >= shape[1] else G.T
    formula = tall @ np.linalg.inv(scipy.linalg.sqrtm(tall.T @ tall).real)
    np.testing.assert_allclose(R.numpy(), formula if shape[0] >= shape[1] else formula.T, rtol=0, atol=tolerance)


def test_is_nearest():
    generator = torch.Generator().manual_seed(0)
    G = torch.randn(4, 7, dtype=torch.float64, generator=generator)
    R = nearest_orthogonal(G)[0]
    for scale in (1e-3, 1e-1, 10):
        other = scipy.linalg.polar((R + scale * torch.randn(4, 7, generator=generator)).numpy())[0]
        assert (G - R).norm() < (G - torch.from_numpy(other)).norm()


def test_ill_conditioned_gradients_keep_their_directions():
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(27, 27, dtype=torch.float64, generator=generator))[0] for _ in range(2))
    G = U * torch.logspace(0, -6, 27, dtype=torch.float64) @ V.mT
    R = nearest_orthogonal(G)[0]
    torch.testing.assert_close(R, U @ V.mT, rtol=0, atol=1e-9)
    # a gradient that float32 rounds has other smallest directions, and is still made orthogonal
    R = nearest_orthogonal(G.float())[0]
    torch.testing.assert_close(R @ R.mT, torch.eye(27), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("condition", "dtype", "tolerance"), [
    (1e6, torch.float32, 1e-6), (1e6, torch.bfloat16, 4e-3),  # the rounding of the result: eps, entries at most 1
])  # fmt: skip
def test_nothing_is_lost_before_the_decomposition(condition, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    U, _, Vh = torch.linalg.svd(torch.randn(64, 27, generator=generator, dtype=torch.float64), full_matrices=False)
    G = (U * torch.logspace(0, -math.log10(condition), 27, dtype=torch.float64) @ Vh).to(dtype)
    expected, _ = scipy.linalg.polar(G.double().numpy())
    R, _, _ = nearest_orthogonal(G)
    torch.testing.assert_close(R.double(), torch.from_numpy(expected), rtol=0, atol=tolerance)


def test_the_largest_gradients_do_not_vanish():
    G = torch.full((3, 2), 3e38)
    R, _, usable = nearest_orthogonal(G)
    assert usable
    torch.testing.assert_close(R, torch.full((3, 2), 6**-0.5))


def test_directions_without_gradient_stay_without():
    G = torch.tensor([[1.0, 2.0, 2.0], [2.0, 4.0, 4.0], [0.0, 0.0, 0.0]])
    R, _, usable = nearest_orthogonal(G)
    u, v = torch.tensor([1.0, 2.0, 0.0]) / 5**0.5, torch.tensor([1.0, 2.0, 2.0]) / 3
    torch.testing.assert_close(R, torch.outer(u, v))
    assert usable


@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
def test_zero_and_non_finite_gradients_are_left_alone(value):
    G = torch.ones(3, 2) if value else torch.zeros(3, 2)
    G[1, 1] = value
    R, _, usable = nearest_orthogonal(G)
    assert not usable
    torch.testing.assert_close(R, G, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_extreme_gradients_neither_overflow_nor_vanish(scale):
    G = torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    torch.testing.assert_close(nearest_orthogonal(G * scale)[0], nearest_orthogonal(G)[0])


def plain_gradient(training, **arguments):
    return training(max_steps=1, **arguments)[0].gradients[0]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulated", "bf16"],
)
def test_replaces_the_gradient_of_the_step(training, arguments):
    record, trainer = training(NearestOrthogonalGradient(), max_steps=1, **arguments)
    expected = nearest_orthogonal(plain_gradient(training, **arguments))[0]
    torch.testing.assert_close(record.gradients[0], expected)
    torch.testing.assert_close(expected.mT @ expected, torch.eye(27), rtol=0, atol=1e-5)
    assert {"nog/left_alone", "nog/gradient_norm"} <= trainer.callback_metrics.keys()
    assert trainer.callback_metrics["nog/left_alone"] == 0


def test_momentum_and_weight_decay_act_on_the_new_gradient(training):
    model = training.model(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
    record, _ = training(NearestOrthogonalGradient(), model=model, max_steps=2)
    momentum, weight = torch.zeros(32, 27), record.weights[0]
    for R in record.gradients:
        momentum = 0.9 * momentum + R + 0.01 * weight
        weight = weight - 0.1 * momentum
    torch.testing.assert_close(record.weights[-1], weight)


def test_clipping_comes_after_and_scales_all_alike(training):
    record, _ = training(NearestOrthogonalGradient(), max_steps=1, gradient_clip_val=1.0)
    R, clipped = record.gradients[0], record.clipped[0]
    factor = clipped.norm() / R.norm()
    # the norm of R alone is sqrt(27)
    assert factor < 27**-0.5
    torch.testing.assert_close(clipped, factor * R)


def test_acts_on_the_parameter_of_an_orthogonal_weight(training):
    model = training.model(weight_treatment="orthogonal")
    record, _ = training(NearestOrthogonalGradient(), model=model, max_steps=1)
    parametrization = model.pre_svd_layer.parametrizations["weight"]
    assert isinstance(parametrization[0], OrthogonalWeight)
    torch.testing.assert_close(record.weights[1], record.weights[0] - 0.1 * record.gradients[0])
    torch.testing.assert_close(record.gradients[0].mT @ record.gradients[0], torch.eye(27), rtol=0, atol=1e-5)


def test_half_precision_is_unscaled_and_overflow_is_left_to_the_scaler(training):
    callback = NearestOrthogonalGradient()
    record, trainer = training(callback, max_steps=1, plugins=[training.half_precision(2.0**8)])
    expected = plain_gradient(training, plugins=[training.half_precision(2.0**4)])
    assert trainer.precision_plugin.scaler.get_scale() == 2**8
    # gradients of different scales agree to the rounding of float16, which the polar factor may amplify
    expected = nearest_orthogonal(expected)[0]
    assert (record.gradients[0] * expected).sum() / 27 > 0.9
    torch.testing.assert_close(record.gradients[0].mT @ record.gradients[0], torch.eye(27), rtol=0, atol=1e-5)
    assert callback.state_dict() == {"left_alone": 0}

    callback = NearestOrthogonalGradient()
    record, trainer = training(callback, max_steps=1, plugins=[training.half_precision(2.0**60)])
    assert not record.gradients[0].isfinite().all()
    assert torch.equal(record.weights[1], record.weights[0])
    assert callback.state_dict() == {"left_alone": 1}


def test_count_is_part_of_the_checkpoint(training, tmp_path):
    callback = NearestOrthogonalGradient()
    callback.left_alone += 3
    _, trainer = training(callback, max_steps=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = NearestOrthogonalGradient()
    training(again, max_steps=2, ckpt_path=tmp_path / "a.ckpt")
    assert again.state_dict() == {"left_alone": 3}


def test_refusals_before_the_first_batch(training):
    with pytest.raises(ValueError, match="NearestOrthogonalGradient has no layer to act on"):
        training(NearestOrthogonalGradient(), model=training.model(decorrelation=None, decorrelation_options=None))
    with pytest.raises(ValueError, match="NearestOrthogonalGradient must come before OptimalLearningRate"):
        training(OptimalLearningRate(), NearestOrthogonalGradient())
    fused = training.model(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, fused=True))
    with pytest.raises(ValueError, match="fused SGD unscales them later"):
        training(NearestOrthogonalGradient(), model=fused, plugins=[training.half_precision(1.0)])
    training(NearestOrthogonalGradient(), model=fused, max_steps=1)


def test_acts_on_the_reduction_of_covariance_pooling(training):
    model = training.model(decorrelation=None, decorrelation_options=None, meta_layer="svd-exact", dim=8)
    record, _ = training(NearestOrthogonalGradient(), model=model, max_steps=1)
    R = record.gradients[0]
    assert R.shape == (8, 64)
    torch.testing.assert_close(R @ R.mT, torch.eye(8), rtol=0, atol=1e-5)

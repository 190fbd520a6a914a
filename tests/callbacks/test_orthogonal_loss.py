import pytest
import torch

from callbacks import NearestOrthogonalGradient, OrthogonalLoss
from callbacks.nearest_orthogonal_gradient import nearest_orthogonal
from callbacks.orthogonal_loss import orthogonal_loss


def test_by_hand():
    # W W^T - I = diag(3, 0): norm 3, gradient 2 diag(3, 0) W / 3
    value, gradient = orthogonal_loss(torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert value == 3
    torch.testing.assert_close(gradient, torch.tensor([[4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(5, 3), (3, 5)])
def test_gradient_is_autograds(shape):
    W = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = torch.linalg.norm(W @ W.T - torch.eye(len(W)))
    value, gradient = orthogonal_loss(W.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, W)[0])


def test_an_orthogonal_weight_has_neither():
    value, gradient = orthogonal_loss(torch.eye(2, 3))
    assert value == 0
    assert torch.equal(gradient, torch.zeros(2, 3))


@pytest.mark.parametrize(
    "arguments", [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}], ids=["plain", "accumulated", "bf16"]
)
def test_adds_its_gradient_once_a_step(training, arguments):
    record, trainer = training(OrthogonalLoss(0.5), max_steps=1, **arguments)
    plain, _ = training(max_steps=1, **arguments)
    value, gradient = orthogonal_loss(record.weights[0])
    torch.testing.assert_close(record.gradients[0], plain.gradients[0] + 0.5 * gradient)
    torch.testing.assert_close(trainer.callback_metrics["orthogonal_loss/value"], value)


def test_is_not_scaled_with_the_loss(training):
    record, _ = training(OrthogonalLoss(0.5), max_steps=1, plugins=[training.half_precision(2.0**8)])
    plain, _ = training(max_steps=1, plugins=[training.half_precision(2.0**8)])
    torch.testing.assert_close(record.gradients[0], plain.gradients[0] + 0.5 * orthogonal_loss(record.weights[0])[1])


def test_drives_the_columns_to_orthonormality(training):
    # 32 rows, 27 columns: the best that W can do is W^T W = I, where ||W W^T - I|| = sqrt(5)
    record, _ = training(OrthogonalLoss(10.0), max_epochs=40)
    norms = [orthogonal_loss(W)[0].item() for W in record.weights]
    assert norms[-1] < 1.3 * 5**0.5 < norms[0]


def test_the_nearest_orthogonal_gradient_is_that_of_the_sum(training):
    record, _ = training(OrthogonalLoss(0.5), NearestOrthogonalGradient(), max_steps=1)
    total, _ = training(OrthogonalLoss(0.5), max_steps=1)
    torch.testing.assert_close(record.gradients[0], nearest_orthogonal(total.gradients[0])[0])


def test_refusals(training):
    with pytest.raises(ValueError, match="coefficient of the orthogonal loss must be positive"):
        OrthogonalLoss(-1)
    with pytest.raises(ValueError, match="OrthogonalLoss must come before NearestOrthogonalGradient"):
        training(NearestOrthogonalGradient(), OrthogonalLoss())
    with pytest.raises(ValueError, match="OrthogonalLoss and weight_treatment orthogonal treat the same weight"):
        training(OrthogonalLoss(), model=training.model(weight_treatment="orthogonal"))

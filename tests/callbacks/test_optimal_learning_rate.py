import warnings

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from callbacks import NearestOrthogonalGradient, OptimalLearningRate
from callbacks.optimal_learning_rate import optimal_learning_rate

EPSILON = torch.finfo(torch.float64).eps


def formula(W, G):
    """Eq. (20) as it is written."""
    w, l_ = np.asarray(W, dtype=float).reshape(-1, 1), np.asarray(G, dtype=float).reshape(-1, 1)
    ww, lw, ll = w.T @ w, l_.T @ w, l_.T @ l_
    return ((ww * lw) / (ww * ll + 2 * lw * lw)).item()


def test_by_hand():
    # <w,w> = <l,l> = 5, <l,w> = 4: 5 * 4 / (5 * 5 + 2 * 16)
    rate = optimal_learning_rate(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(rate, torch.tensor(20 / 57, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_is_the_written_out_equation(scale):
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        W, G = (torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=generator) * scale for _ in range(2))
        assert optimal_learning_rate(W, G).item() == pytest.approx(formula(W, G), rel=100 * EPSILON)


@pytest.mark.parametrize("cosine", [0.1, 0.01, 0.001])
def test_minimises_the_objective_where_the_approximation_holds(cosine):
    # eq. (18), with I small beside W W^T and matrices of rank one; the minimum is c |w| / |l|, eq. (20) gives
    # c / (1 + 2 c^2) |w| / |l|: they differ by 2 c^2
    rng = np.random.default_rng(0)
    basis = scipy.stats.ortho_group.rvs(6, random_state=rng)
    u, w = rng.standard_normal(4), 1e3 * basis[0]
    gradient = 50 * (cosine * basis[0] + (1 - cosine**2) ** 0.5 * basis[1])
    u /= np.linalg.norm(u)
    W, G = np.outer(u, w), np.outer(u, gradient)

    def objective(eta):
        M = W - eta * G
        return np.linalg.norm(M @ M.T - np.eye(4))

    expected = cosine * 1e3 / 50
    found = scipy.optimize.minimize_scalar(objective, bracket=(0, expected), tol=1e-12).x
    rate = optimal_learning_rate(torch.from_numpy(W), torch.from_numpy(G)).item()
    # a minimum of a function known to eps is found to sqrt(eps), relative to |w| / |l|
    assert rate == pytest.approx(found, rel=2 * cosine**2, abs=20 * 1e-7)


@pytest.mark.parametrize("N", [2, 8, 32])
def test_limits_of_proposition_1(N):
    rng = np.random.default_rng(N)
    for _ in range(50):
        W, G = scipy.stats.ortho_group.rvs(N, size=2, random_state=rng)
        G *= np.sign(np.vdot(W, G))
        rate = optimal_learning_rate(torch.from_numpy(W), torch.from_numpy(G)).item()
        assert rate <= min(N**2 / (N**2 + 2), 8**-0.5)
        if np.vdot(W, G) >= 1:  # which the proof supposes in eq. (39)
            assert rate >= 1 / (N**2 + 2)
    # parallel ones: N^2 / (N^2 + 2 N^2)
    assert optimal_learning_rate(torch.from_numpy(W), torch.from_numpy(W)).item() == pytest.approx(1 / 3)


def test_is_bounded_by_the_norms_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    rates = []
    for _ in range(200):
        W, G = (torch.randn(2, dtype=torch.float64, generator=generator) for _ in range(2))
        rates.append((optimal_learning_rate(W, G) * G.norm() / W.norm()).item())
    assert max(rates) <= 8**-0.5 * (1 + 10 * EPSILON)
    assert max(rates) > 0.99 * 8**-0.5


@pytest.mark.parametrize(("W", "G"), [(0.0, 1.0), (1.0, 0.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_no_rate_without_weight_or_gradient(W, G):
    assert optimal_learning_rate(torch.full((2, 2), W), torch.full((2, 2), G)).isnan()


def with_gradient(function):
    """The callback, with another gradient of the weight in place of the network's."""

    class Fixed(OptimalLearningRate):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            weight = self.parameter(pl_module)
            weight.grad = function(weight.detach())
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    return Fixed()


@pytest.mark.parametrize(
    ("factor", "scheduled", "rate"),
    [
        # l = f w: eta* = 1 / (3 f)
        (1.0, 0.5, 1 / 3),
        (1.0, 0.3, 0.3),
        (-1.0, 0.5, 0.5),
        (0.0, 0.5, 0.5),
    ],
)
def test_steps_with_the_rate_where_it_is_positive_and_smaller(training, factor, scheduled, rate):
    model = training.model(optimizer=lambda p: torch.optim.SGD(p, lr=scheduled))
    record, trainer = training(with_gradient(lambda w: factor * w), model=model, max_steps=1)
    torch.testing.assert_close(record.weights[1], (1 - rate * factor) * record.weights[0])
    assert trainer.callback_metrics["olr/learning_rate"].item() == pytest.approx(rate)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [scheduled] * 3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sees_the_nearest_orthogonal_gradient(training, precision):
    model = training.model(optimizer=lambda p: torch.optim.SGD(p, lr=10.0))
    treatments = (NearestOrthogonalGradient(), OptimalLearningRate())
    record, _ = training(*treatments, model=model, max_steps=1, precision=precision)
    W, R = record.weights[0], record.gradients[0]
    torch.testing.assert_close(R.mT @ R, torch.eye(27), rtol=0, atol=1e-5)
    eta = abs(formula(W, R))
    assert eta < 10
    step = record.weights[1] - W
    expected = [-eta * R, -10 * R][formula(W, R) < 0]
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-6)


def test_other_layers_step_as_without(training):
    arguments = {"max_steps": 1, "accumulate_grad_batches": 2}
    states = []
    for callbacks in ([with_gradient(lambda w: 10 * w)], []):
        model = training.model()
        training(*callbacks, model=model, **arguments)
        states.append(model.state_dict())
    different = [key for key in states[0] if not torch.equal(states[0][key], states[1][key])]
    assert different == ["backbone.stage1.0.weight"]


def exponential(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


@pytest.mark.parametrize("plugins", [False, True], ids=["float32", "fp16"])
def test_the_schedule_of_every_group_is_what_it_was(training, plugins):
    arguments = {"max_epochs": 3}
    seen = []
    for callbacks in ([OptimalLearningRate()], []):
        plugin = [training.half_precision(2.0**8)] if plugins else []
        model = training.model(lr_scheduler=exponential, classifier_learning_rate=0.7)
        record, trainer = training(*callbacks, model=model, plugins=plugin, **arguments)
        seen.append(record.started_with)
        if callbacks:
            taken = [rates[2] for rates in record.rates]
            group = trainer.optimizers[0].param_groups[2]["lr"]
            assert isinstance(group, float)
            assert group == pytest.approx(0.1 * 0.5**3)
    assert [rates[:2] for rates in seen[0]] == seen[1]
    assert [rates[2] for rates in seen[0]] == [rates[0] for rates in seen[1]]
    # Some rate was not the scheduled one, or this test shows nothing.
    assert taken != [rates[2] for rates in seen[0]] or plugins


def test_a_step_that_the_scaler_skips_leaves_the_scheduled_rate(training):
    # the scale overflows elsewhere in the network; with the layer's own gradient finite a rate is found and not used
    callback = with_gradient(lambda w: 100 * w)
    model = training.model(lr_scheduler=exponential)
    plugin = training.half_precision(2.0**60)
    record, trainer = training(callback, model=model, plugins=[plugin], max_steps=1)
    assert trainer.callback_metrics["olr/learning_rate"].item() == pytest.approx(1 / 300)
    assert torch.equal(record.weights[1], record.weights[0])
    assert len({group["lr"] for group in trainer.optimizers[0].param_groups}) == 1


def test_a_resumed_run_ends_as_if_never_stopped(training, tmp_path):
    def model():
        return training.model(optimizer=lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9), lr_scheduler=exponential)

    whole, _ = training(NearestOrthogonalGradient(), OptimalLearningRate(), model=model(), max_epochs=2)
    _, trainer = training(NearestOrthogonalGradient(), OptimalLearningRate(), model=model(), max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    path = tmp_path / "a.ckpt"
    rest, _ = training(NearestOrthogonalGradient(), OptimalLearningRate(), model=model(), max_epochs=2, ckpt_path=path)
    assert torch.equal(rest.weights[-1], whole.weights[-1])
    assert rest.started_with == whole.started_with[3:]
    with pytest.raises(ValueError, match=r"OptimalLearningRate: in use in the checkpoint, not in use now"):
        training(NearestOrthogonalGradient(), model=model(), max_epochs=2, ckpt_path=path)


@pytest.mark.parametrize(
    ("treatment", "nog", "expected"),
    [
        (None, False, None),
        (None, True, "an orthogonal gradient but not weight"),
        ("orthogonal", False, "an orthogonal weight but not gradient"),
        ("orthogonal", True, None),
        ("spectral", False, None),
    ],
)
def test_warns_of_combinations_that_the_paper_rules_out(training, treatment, nog, expected):
    callbacks = [NearestOrthogonalGradient()] * nog + [OptimalLearningRate()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training(*callbacks, model=training.model(weight_treatment=treatment), max_steps=1)
    messages = [str(w.message) for w in caught if "OptimalLearningRate" in str(w.message)]
    assert len(messages) == (expected is not None)
    assert expected is None or expected in messages[0]


def test_refusals_before_the_first_batch(training):
    with pytest.raises(ValueError, match="OptimalLearningRate has no layer to act on"):
        training(OptimalLearningRate(), model=training.model(decorrelation=None, decorrelation_options=None))
    fused = training.model(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, fused=True))
    with pytest.raises(ValueError, match="fused SGD unscales them later"):
        training(OptimalLearningRate(), model=fused, plugins=[training.half_precision(1.0)])
    model = training.model()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="Classifier must give the pre-SVD layer's weight a parameter group"):
        training(OptimalLearningRate(), model=model)

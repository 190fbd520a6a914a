"""Effective beta-smoothness: against formulas, read back from event files, and off the training path."""

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from app.layers import spectral_layers
from app.models.classifier import Classifier
from callbacks import GradientSmoothness, LossLandscape

QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
LANDSCAPE = ("landscape/loss_min", "landscape/loss_max", "landscape/gradient_min", "landscape/gradient_max")


class Polynomial(pl.LightningModule):
    """``L(X) = mean over b of sum_i a_i X_bi^power / power`` at the activation X = 2 * image after `backbone`."""

    def __init__(self, power, a):
        super().__init__()
        self.power = power
        self.backbone = nn.Conv2d(len(a), len(a), 1, groups=len(a), bias=False)
        nn.init.constant_(self.backbone.weight, 2.0)
        self.pooling = nn.Identity()
        self.register_buffer("a", torch.tensor(a))

    def loss(self, batch):
        X = self.pooling(self.backbone(batch[0])).flatten(1)
        return (self.a * X**self.power).sum(1).mean() / self.power, X

    def training_step(self, batch, batch_index):
        return self.loss(batch)[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    values = {}
    for tag in events.Tags()["scalars"]:
        values[tag] = [(event.step, event.value) for event in events.Scalars(tag)]
    return values


def fit(model, data, tmp_path, *callbacks, **arguments):
    logger = TensorBoardLogger(tmp_path, name="", version="log")
    trainer = pl.Trainer(logger=logger, callbacks=list(callbacks), **{"max_steps": 1, **QUIET, **arguments})
    trainer.fit(model, data)
    return trainer, scalars(tmp_path / "log")


@pytest.mark.parametrize("power", [2, 4])
def test_both_equal_the_formulas(power, tmp_path):
    a, lengths = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64), [0.2, 0.5, 0.8]
    images = torch.randn(4, 3, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    data = DataLoader(TensorDataset(images, torch.zeros(4)), batch_size=4)
    monitors = (GradientSmoothness(1, lengths), LossLandscape(1, 0.2, 0.8, points=3))
    _, log = fit(Polynomial(power, a.tolist()), data, tmp_path, *monitors, precision="64-true", log_every_n_steps=50)

    X = 2 * images.flatten(1)

    def gradient(X):
        return a * X ** (power - 1) / 4

    moved = [X + eta * gradient(X) for eta in lengths]
    losses = [float((a * x**power).sum() / power / 4) for x in moved]
    changes = [(gradient(X) - gradient(x)).norm().item() for x in moved]
    betas = [c / (eta * gradient(X).norm().item()) for c, eta in zip(changes, lengths, strict=True)]
    if power == 2:  # the Hessian is diag(a) / 4: beta is the same at all lengths, and at most its largest entry
        assert max(betas) == pytest.approx(min(betas))
        assert max(betas) <= 0.75
    assert log["smoothness/beta"] == [(0, pytest.approx(max(betas), rel=1e-6))]
    expected = (min(losses), max(losses), min(changes), max(changes))
    assert [log[tag][0][1] for tag in LANDSCAPE] == pytest.approx(expected, rel=1e-6)


class Augmented(Dataset):
    """Images with random noise: the numbers of the training change if anything else draws from the generator."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        image = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(index))
        return image + 0.1 * torch.randn(3, 32, 32), index % 6


def small(meta_layer, dropout=0.3):
    torch.manual_seed(0)
    model = Classifier(6, "compact", meta_layer, dim=8)
    model.backbone.stage2.append(nn.Dropout(dropout))
    model.spectra = []
    for layer in spectral_layers(model).values():
        layer.observe_spectrum(model.spectra.append)
    nn.utils.parametrizations.spectral_norm(model.backbone.stage3[0])  # its power iteration is a state too
    return model


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("meta_layer", ["gap", "isqrt-cov", "svd-pade"])
def test_training_is_the_same_bit_by_bit(meta_layer, precision, tmp_path):
    states = []
    for k, monitors in enumerate([(), (GradientSmoothness(1, [0.1, 10]), LossLandscape(2, points=3))]):
        model = small(meta_layer)
        run = {"max_steps": 5, "accumulate_grad_batches": 2, "log_every_n_steps": 1, "precision": precision}
        trainer, log = fit(model, DataLoader(Augmented(), 4, shuffle=True), tmp_path / str(k), *monitors, **run)
        optimizer = trainer.optimizers[0].state_dict()["state"]
        tensors = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        tensors += [s["momentum_buffer"] for s in optimizer.values()]
        layer = model.pooling
        tensors += [torch.get_rng_state(), *model.spectra]
        states.append((tensors, log["train/loss"], copy.copy(getattr(layer, "counts", None)), set(vars(layer))))
    (plain, *rest), (watched, *watched_rest) = states
    assert all(map(torch.equal, plain, watched))
    assert len(plain) == len(watched)
    assert rest == watched_rest
    # three batches an epoch, two of them a step: steps 0 to 4 begin at batches 0, 2, 0, 2, 0
    assert [step for step, _ in log["smoothness/beta"]] == [0, 1, 2, 3, 4]
    assert [step for step, _ in log["landscape/loss_max"]] == [0, 2, 4]
    for tag in ("smoothness/beta", *LANDSCAPE):
        assert all(0 < value < float("inf") for _, value in log[tag])


def test_without_a_step_it_is_the_loss_of_the_training_step(tmp_path):
    """The same batch, dropout masks and statistics: a step that rounding swallows leaves the loss to its last bit."""
    nowhere = LossLandscape(1, 1e-30, 1e-30, points=1)
    data = DataLoader(Augmented(), 4, shuffle=True)
    _, log = fit(small("svd-exact"), data, tmp_path, nowhere, max_steps=3, log_every_n_steps=1)
    assert log["landscape/loss_min"] == log["landscape/loss_max"] == log["train/loss"]
    assert [value for _, value in log["landscape/gradient_max"]] == [0, 0, 0]


def test_a_step_that_is_too_long_is_reported_and_the_training_continues(tmp_path):
    trainer, log = fit(small("svd-exact"), DataLoader(Augmented(), 4), tmp_path, LossLandscape(1, 1, 1e60, points=2))
    assert trainer.global_step == 1
    for tag in LANDSCAPE:
        assert all(math.isnan(value) for _, value in log[tag])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"step_lengths": []}, "step lengths must be positive numbers"),
        ({"step_lengths": [1, -1]}, r"step lengths must be positive numbers, at least one, got \[1, -1\]"),
        ({"layer": "head"}, "the model has no layer 'head': choose a name within backbone, pooling, classifier"),
        ({"layer": "train_metrics"}, "the network does not use its layer train_metrics"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fit(small("gap"), DataLoader(Augmented(), 4), tmp_path, GradientSmoothness(**arguments))

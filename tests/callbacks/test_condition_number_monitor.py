"""The logged quantities against those of the eigenvalues that numpy finds in the same features."""

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ConditionNumberMonitor
from callbacks.condition_number_monitor import QUANTITIES, conditioning
from tests.callbacks.parts import CHANNELS, Fixed, Plain

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")

EPS = 2.0**-52


class Truth(pl.Callback):
    """The quantities of the first accumulated batch of each step, from the features, by numpy.

    It also notes the steps in which the layer decomposed something.
    """

    def __init__(self, layer):
        self.layer, self.rows, self.decomposed = layer, {}, set()
        layer.register_forward_pre_hook(self.keep)
        layer.register_forward_hook(self.put_back)

    def keep(self, module, inputs):
        self.features = inputs[0].detach().double().flatten(2).numpy()
        self.eigh, torch.linalg.eigh = torch.linalg.eigh, self.decompose

    def decompose(self, A):
        self.decomposed.add(self.step)
        return self.eigh(A)

    def put_back(self, module, inputs, output):
        torch.linalg.eigh = self.eigh

    def on_train_batch_start(self, trainer, *arguments):
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer, *arguments):
        self.rows.setdefault(self.step, np.mean([self.of(np.cov(X, bias=True)) for X in self.features], 0))

    @staticmethod
    def of(covariance):
        d = len(covariance)
        eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
        rank = np.linalg.matrix_rank(covariance, hermitian=True)
        condition = eigenvalues[0] / (eigenvalues[-1] if rank == d else EPS)
        ratio = eigenvalues[0] / eigenvalues[1]
        return [condition, math.log10(condition), eigenvalues[0] / eigenvalues[rank - 1], rank, ratio, 1 - rank / d]


def fit(folder, model, *callbacks, logger=None, epochs=2, ckpt_path=None, batch_size=4, **arguments):
    logger = logger or TensorBoardLogger(folder, name=None, version="", default_hp_metric=False)
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, logger=logger, enable_progress_bar=False, callbacks=[*callbacks],
        enable_model_summary=False, log_every_n_steps=1, num_sanity_val_steps=0, **arguments,
    )  # fmt: skip
    trainer.fit(model, datamodule=Fixed(batch_size), ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.mark.parametrize(
    ("spectrum", "d", "expected"),
    [
        ([1.0, 2.0, 8.0], 3, [8, math.log10(8), 8, 3, 4, 0]),
        ([1.0, 2.0, 8.0], 5, [8 / EPS, math.log10(8 / EPS), 8, 3, 4, 2 / 5]),
        ([0.0, 2.0, 2.0], 3, [2 / EPS, math.log10(2 / EPS), 1, 2, 1, 1 / 3]),
        ([1e-20, 1e-17, 1e-12], 3, [1e-12 / EPS, math.log10(1e-12 / EPS), 1e8, 3, 1e-12 / EPS, 2 / 3]),
        ([0.0, 0.0, 0.0], 3, [1, 0, 1, 0, 1, 1]),
        ([0.0, 1.0, 1e30], 3, [1e30 / EPS, math.log10(1e30 / EPS), 1, 1, 1e30, 1 / 3]),
        ([5.0], 2, [5 / EPS, math.log10(5 / EPS), 1, 1, 5 / EPS, 1 / 2]),
    ],
)
def test_the_quantities_by_hand(spectrum, d, expected):
    computed = conditioning(torch.tensor([spectrum, spectrum], dtype=torch.float64), d)
    assert computed.dtype == torch.float64
    for row in computed.tolist():
        assert row == pytest.approx(expected, rel=1e-14, abs=0)


def test_eps_is_that_of_the_spectral_dtype():
    computed = conditioning(torch.tensor([[0.0, 1e35]]), 2)[0, 0].item()
    assert computed == pytest.approx(1e35 / 2**-23, rel=1e-6)  # more than float32 holds


# The layer's map has 36 positions and 6 channels: numpy's error is about 1e-15 times the condition number of some 30,
# and event files hold float32.
CLOSE = 1e-6


@pytest.mark.parametrize(
    ("model", "every", "arguments"),
    [
        ({"meta_layer": "svd-pade"}, 1, {}),
        ({"meta_layer": "isqrt-cov"}, 4, {}),
        ({"meta_layer": "isqrt-cov", "meta_options": {"route": "products"}}, 4, {}),
        ({"meta_layer": "isqrt-cov", "meta_options": {"route": "products"}}, 2, {"accumulate_grad_batches": 2}),
        ({"meta_layer": "svd-exact"}, 3, {"precision": "bf16-mixed"}),
        ({"meta_layer": "svd-exact"}, None, {"val_check_interval": 2}),
    ],
)
def test_steps_and_epochs_in_the_event_file(model, every, arguments, tmp_path, scalars):
    model = Plain(**model)
    truth = Truth(model.pooling)
    fit(tmp_path, model, truth, ConditionNumberMonitor(every), **arguments)
    logged = scalars(tmp_path)
    steps = 6 // arguments.get("accumulate_grad_batches", 1)
    measured = [step for step in range(2 * steps) if step % (every or 1) == 0]
    for column, name in enumerate(QUANTITIES):
        values = [truth.rows[step][column] for step in measured]
        assert [step for step, _ in logged[f"covariance/{name}"]] == measured
        assert [value for _, value in logged[f"covariance/{name}"]] == pytest.approx(values, rel=CLOSE)
        means = []
        for epoch in (0, 1):
            means.append(np.mean([truth.rows[step][column] for step in measured if step // steps == epoch]))
        assert [step for step, _ in logged[f"covariance/{name}_epoch"]] == [steps - 1, 2 * steps - 1]
        assert [value for _, value in logged[f"covariance/{name}_epoch"]] == pytest.approx(means, rel=CLOSE)
    products = model.pooling.meta_options.get("route") == "products"
    assert truth.decomposed == set(measured if products else range(2 * steps))


def test_every_layer_has_its_tags_and_zero_eigenvalues_count(tmp_path, scalars):
    model = Plain(layers=2)
    truths = {"pooling.whole": Truth(model.pooling.whole), "pooling.part": Truth(model.pooling.part)}
    fit(tmp_path, model, *truths.values(), ConditionNumberMonitor(), epochs=1)
    logged = scalars(tmp_path)
    for layer, truth in truths.items():
        for column, name in enumerate(QUANTITIES):
            values = [truth.rows[step][column] for step in range(6)]
            assert [v for _, v in logged[f"covariance/{name}/{layer}"]] == pytest.approx(values, rel=CLOSE)
            (mean,) = (v for _, v in logged[f"covariance/{name}_epoch/{layer}"])
            assert mean == pytest.approx(np.mean(values), rel=CLOSE)
    # 2 x 2 positions: three eigenvalues of six
    assert {value for _, value in logged["covariance/rank/pooling.part"]} == {3}
    assert all(value > 1e13 for _, value in logged["covariance/condition_number/pooling.part"])
    assert not any(tag in logged for tag in ("covariance/rank", "covariance/rank_epoch"))


def test_a_resumed_run_logs_what_the_whole_run_logs(tmp_path, scalars):
    fit(tmp_path / "whole", Plain(), ConditionNumberMonitor(4), epochs=2)
    fit(tmp_path / "half", Plain(), ConditionNumberMonitor(4), epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    fit(tmp_path / "half", Plain(), ConditionNumberMonitor(4), epochs=2, ckpt_path=tmp_path / "a.ckpt")
    whole, half = scalars(tmp_path / "whole"), scalars(tmp_path / "half")
    tags = [tag for tag in whole if tag.startswith("covariance/")]
    assert len(tags) == 2 * len(QUANTITIES)
    assert {tag: half[tag] for tag in tags} == {tag: whole[tag] for tag in tags}


def test_a_run_resumed_inside_an_epoch_keeps_the_mean(tmp_path, scalars):
    model = Plain()
    truth = Truth(model.pooling)
    trainer = fit(tmp_path / "part", model, truth, ConditionNumberMonitor(1), epochs=1, max_steps=2)
    state = trainer.callbacks[1].state_dict()
    again = ConditionNumberMonitor(1)
    again.load_state_dict(state)
    assert again.state_dict() == state
    *sums, matrices = state["sums"]["pooling"]
    assert matrices == 2 * 4
    assert [s / matrices for s in sums] == pytest.approx(np.mean([truth.rows[0], truth.rows[1]], 0), rel=CLOSE)


def test_histograms_where_the_logger_draws_them(tmp_path):
    model = Plain()
    fit(tmp_path / "tensorboard", model, ConditionNumberMonitor(2, histogram_every_n_steps=5))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"histograms": 0})
    events.Reload()
    histograms = events.Histograms("covariance/log10_eigenvalues")
    # the first measured steps from 0, 5 and 10 on
    assert [h.step for h in histograms] == [0, 6, 10]
    assert {h.histogram_value.num for h in histograms} == {4 * CHANNELS}
    assert all(-16 < h.histogram_value.min < h.histogram_value.max < 1 for h in histograms)

    fit(tmp_path / "csv", model, ConditionNumberMonitor(2, 1), logger=CSVLogger(tmp_path / "csv"))
    fit(tmp_path / "none", model, ConditionNumberMonitor(2, 1), logger=False)


def test_nothing_to_measure(tmp_path, scalars):
    model = Plain("gap")
    with pytest.warns(UserWarning, match="ConditionNumberMonitor: the model has no layer with a covariance"):
        fit(tmp_path, model, ConditionNumberMonitor())
    assert not any(tag.startswith("covariance/") for tag in scalars(tmp_path))
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        ConditionNumberMonitor(every_n_steps=0)

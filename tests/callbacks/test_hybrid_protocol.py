"""The epoch of the switch, the layer in the checkpoints, and a killed run that ends as if it had not been."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from app.models.classifier import Classifier
from callbacks import HybridProtocol

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:.*no `val_dataloader`")

FIRST, SECOND = "isqrt-cov", "svd-taylor"


class PowerCutError(Exception):
    """The end of a run."""


class Watch(pl.Callback):
    """Records the layer of every batch, and stops a run in the middle of an epoch."""

    def __init__(self, stop_in=None):
        self.stop_in, self.layers, self.stages = stop_in, [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == self.stop_in and index == 1:
            raise PowerCutError
        if index == 0:
            self.layers.append((module.pooling.meta_layer, module.pooling.meta_options))

    def on_train_epoch_end(self, trainer, module):
        stage = next(c.stage for c in trainer.callbacks if isinstance(c, HybridProtocol))
        self.stages.append((stage, trainer.optimizers[0].param_groups[0]["lr"]))


def model(meta_layer=FIRST, meta_options=None, milestones=(2, 5), scheduler=None):
    torch.manual_seed(0)
    scheduler = scheduler or (lambda optimizer: MultiStepLR(optimizer, list(milestones), 0.1))
    return Classifier(6, "compact", meta_layer, 8, meta_options, lr_scheduler=scheduler)


def fit(folder, model, hybrid, epochs=7, watch=None, ckpt_path=None, **arguments):
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(12, 3, 16, 16, generator=generator), torch.arange(12) % 6)
    last = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = pl.Trainer(
        default_root_dir=folder, max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[hybrid, watch or Watch(), last], **arguments,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, 4), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def hybrid(**options):
    return HybridProtocol(**{"svd_layer": SECOND, "svd_options": {"taylor_degree": 7}, "warmup_epochs": 2, **options})


def test_the_papers_protocol(tmp_path, caplog):
    watch = Watch()
    with caplog.at_level("INFO", "pytorch_lightning.utilities.rank_zero"):
        fit(tmp_path, model(), hybrid(), watch=watch)
    second = (SECOND, {"taylor_degree": 7})
    assert watch.layers == 3 * [(FIRST, {})] + 4 * [second]
    # Lightning steps the schedule before the last hook of an epoch, which sees the rate of the next epoch.
    assert [stage for stage, _ in watch.stages] == [0, 0, 0, 1, 1, 2, 2]
    assert [rate for _, rate in watch.stages][3:5] == pytest.approx([1e-2, 1e-3])
    said = [message for message in caplog.messages if message.startswith("hybrid")]
    assert said == [
        "hybrid protocol, epoch 0: stage 0 (Newton-Schulz) with isqrt-cov; svd-taylor from epoch 3 on",
        "hybrid protocol, epoch 3: stage 1 (warm-up) with svd-taylor",
        "hybrid protocol, epoch 5: stage 2 (SVD) with svd-taylor",
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The parameters at the end of a whole run, by the number of accumulated batches."""
    ends = {}
    for accumulate in (1, 2):
        network = model()
        fit(tmp_path_factory.mktemp("whole"), network, hybrid(), accumulate_grad_batches=accumulate)
        ends[accumulate] = network.state_dict()
    return ends


@pytest.mark.parametrize(
    ("stop_in", "stage", "built_with", "accumulate"),
    [
        (2, 0, "the hyper-parameters", 1),
        (3, 0, "the hyper-parameters", 1),
        (4, 1, "the hyper-parameters", 1),
        (5, 1, "the hyper-parameters", 1),
        (6, 2, "the hyper-parameters", 1),
        (4, 1, "the command", 1),
        (6, 2, "the command", 1),
        (4, 1, "the hyper-parameters", 2),
    ],
)
def test_a_killed_run_is_the_same_run(stop_in, stage, built_with, accumulate, tmp_path, uninterrupted):
    with pytest.raises(PowerCutError):
        fit(tmp_path, model(), hybrid(), watch=Watch(stop_in), accumulate_grad_batches=accumulate)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    (state,) = (value for key, value in stored["callbacks"].items() if "HybridProtocol" in key)
    assert (stored["epoch"], state["stage"]) == (stop_in - 1, stage)
    # The layer that was trained with, at the edges of the stages too.
    names = {name: stored["hyper_parameters"][name] for name in ("meta_layer", "meta_options")}
    assert tuple(names.values()) == ((SECOND, {"taylor_degree": 7}) if stage else (FIRST, None))

    network = model(**names) if built_with == "the hyper-parameters" else model()
    watch = Watch()
    fit(tmp_path, network, hybrid(), watch=watch, ckpt_path=tmp_path / "last.ckpt", accumulate_grad_batches=accumulate)
    assert [stage for stage, _ in watch.stages] == [0, 0, 0, 1, 1, 2, 2][stop_in:]
    whole = uninterrupted[accumulate]
    assert all(torch.equal(value, whole[name]) for name, value in network.state_dict().items())


def test_a_switch_that_was_made_remains(tmp_path):
    # in 4 epochs the last decay is at 3, in 8 epochs it is at 7
    fit(tmp_path, model(milestones=(3, 7)), hybrid(), 4)
    watch = Watch()
    fit(tmp_path, model(milestones=(3, 7)), hybrid(), 8, watch, tmp_path / "last.ckpt")
    assert [stage for stage, _ in watch.stages] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("epochs", "options", "stop_in", "stages"),
    [
        (4, {"warmup_epochs": 1}, 1, [1, 2, 2]),  # in 4 epochs the last decay is at 2
        (7, {"switch_epoch": 4}, 2, [0, 0, 1, 2, 2]),  # the decay at 5 begins stage 2
        (7, {"switch_epoch": 1}, 3, [1, 1, 2, 2]),  # past: at once
    ],
)
def test_a_switch_that_was_not_made_is_planned_anew(epochs, options, stop_in, stages, tmp_path):
    with pytest.raises(PowerCutError):
        fit(tmp_path, model(), hybrid(), watch=Watch(stop_in))
    watch = Watch()
    fit(tmp_path, model(), hybrid(**options), epochs, watch, tmp_path / "last.ckpt")
    assert [stage for stage, _ in watch.stages] == stages
    assert [name == SECOND for name, _ in watch.layers] == [stage > 0 for stage in stages]


def test_a_third_layer_on_resuming_is_used(tmp_path):
    with pytest.raises(PowerCutError):
        fit(tmp_path, model(), hybrid(), watch=Watch(2))
    watch = Watch()
    fit(tmp_path, model("ns-minimax"), hybrid(), watch=watch, ckpt_path=tmp_path / "last.ckpt")
    assert [name for name, _ in watch.layers] == ["ns-minimax", SECOND, SECOND, SECOND, SECOND]


def test_a_new_run_forgets_the_old_one(tmp_path):
    callback = hybrid()
    for _ in range(2):
        watch = Watch()
        fit(tmp_path, model(), callback, watch=watch)
        assert [stage for stage, _ in watch.stages] == [0, 0, 0, 1, 1, 2, 2]


STEPS = {
    "MultiStepLR": (lambda o: MultiStepLR(o, [2, 5, 20]), 5),
    "StepLR": (lambda o: StepLR(o, 3), 6),
    "linear warm-up, then steps": (lambda o: SequentialLR(o, [LinearLR(o, 0.1, 1, 2), MultiStepLR(o, [4])], [2]), 6),
    "constant warm-up, then steps": (lambda o: ChainedScheduler([ConstantLR(o, 0.1, 2), MultiStepLR(o, [5])]), 5),
    "LambdaLR": (lambda o: LambdaLR(o, lambda e: 1.0 if e < 3 else 0.5), 3),
    "MultiplicativeLR": (lambda o: MultiplicativeLR(o, lambda e: 0.3 if e == 4 else 1.0), 4),
    "a rise after the decay": (lambda o: LambdaLR(o, lambda e: {4: 0.5, 5: 0.5}.get(e, 1.0)), 4),
}


@pytest.mark.parametrize("schedule", STEPS)
def test_the_last_decay_of_any_schedule_of_steps(schedule, tmp_path):
    scheduler, decay = STEPS[schedule]
    network, watch = model(scheduler=scheduler), Watch()
    fit(tmp_path, network, hybrid(warmup_epochs=1), watch=watch, limit_train_batches=1)
    stages = [stage for stage, _ in watch.stages]
    assert stages == [0] * (decay - 1) + [1] + [2] * (7 - decay)
    # asking a schedule does not advance it
    configuration = model(scheduler=scheduler).configure_optimizers()
    for _, rate in watch.stages:
        configuration["optimizer"].step()
        configuration["lr_scheduler"]["scheduler"].step()
        assert rate == configuration["optimizer"].param_groups[0]["lr"]


SMOOTH = {
    "cosine": (lambda o: CosineAnnealingLR(o, 7), "CosineAnnealingLR does not decay in steps"),
    "half a cosine": (lambda o: CosineAnnealingLR(o, 4), "CosineAnnealingLR does not decay in steps"),
    "exponential": (lambda o: ExponentialLR(o, 0.9), "ExponentialLR does not decay in steps"),
    "polynomial": (lambda o: PolynomialLR(o, 5), "PolynomialLR does not decay in steps"),
    "one cycle": (lambda o: OneCycleLR(o, 0.1, 8), "OneCycleLR does not decay in steps"),
    "cyclic": (lambda o: CyclicLR(o, 0.01, 0.1, 2), "CyclicLR does not decay in steps"),
    "steps, then a cosine": (
        lambda o: SequentialLR(o, [StepLR(o, 3), CosineAnnealingLR(o, 3)], [4]), "SequentialLR does not decay in steps",
    ),
    "no decay": (lambda o: MultiStepLR(o, [7]), "MultiStepLR has no learning-rate decay in 7 epochs"),
    "plateau": (lambda o: ReduceLROnPlateau(o), "it is not known beforehand when ReduceLROnPlateau decays"),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SMOOTH)
def test_a_schedule_without_a_last_decay_is_refused(schedule, tmp_path):
    scheduler, message = SMOOTH[schedule]
    network = model(scheduler=scheduler)
    if schedule == "plateau":
        network.configure_optimizers = lambda: {
            "optimizer": (optimizer := torch.optim.SGD(network.parameters(), lr=0.1)),
            "lr_scheduler": {"scheduler": scheduler(optimizer), "monitor": "train/loss"},
        }
    watch = Watch()
    with pytest.raises(ValueError, match=f"HybridProtocol: {message}.*give switch_epoch") as error:
        fit(tmp_path, network, hybrid(), watch=watch)
    assert "\n" not in str(error.value)
    assert watch.layers == []
    fit(tmp_path, network, hybrid(switch_epoch=3), watch=watch, limit_train_batches=1)
    assert [stage for stage, _ in watch.stages] == [0, 0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("options", "network", "message"),
    [
        ({"warmup_epochs": 4}, {}, r"warmup_epochs 4 is longer than the stage .* epochs 2 to 4: give at most 3"),
        ({"switch_epoch": 7}, {}, "switch_epoch 7 is not reached, the epochs are 0 to 6"),
        ({}, {"meta_layer": "gap"}, "svd_layer svd-taylor cannot be switched to: gap pooling of 64 channels cannot"),
        ({"svd_layer": "svd"}, {}, "svd_layer svd cannot be switched to: unknown meta_layer 'svd': did you mean"),
        ({"svd_options": {"degree": 7}}, {}, "cannot be switched to: svd-taylor takes no option 'degree'"),
    ],
)
def test_mistakes_are_reported_before_the_first_batch(options, network, message, tmp_path):
    watch = Watch()
    with pytest.raises(ValueError, match=f"HybridProtocol: .*{message}|HybridProtocol: {message}") as error:
        fit(tmp_path, model(**network), hybrid(**options), watch=watch)
    assert "\n" not in str(error.value)
    assert watch.layers == []


def test_a_model_without_a_meta_layer(tmp_path):
    with pytest.raises(ValueError, match="BoringModel has no meta-layer"):
        pl.Trainer(callbacks=[hybrid()], logger=False, default_root_dir=tmp_path).fit(BoringModel())


@pytest.mark.parametrize(("first", "second"), [("svd-exact", "ns-minimax"), ("mpn-cov", "mpn-cov")])
def test_any_layer_on_either_side_and_no_warm_up(first, second, tmp_path):
    watch = Watch()
    callback = HybridProtocol(second, warmup_epochs=0)
    fit(tmp_path, model(first), callback, 6, watch, precision="bf16-mixed", limit_train_batches=1)
    assert [name for name, _ in watch.layers] == 5 * [first] + [second]
    assert [stage for stage, _ in watch.stages] == [0, 0, 0, 0, 0, 2]


def test_from_the_command_line(main, demo, capsys):
    """The stage in the event file; the checkpoint tested and resumed with the layer it was trained with."""
    protocol = ("--trainer.callbacks+", "HybridProtocol", "--trainer.callbacks.warmup_epochs", 1)
    short = ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 2, "--data.patch_size", 32,
             "--trainer.enable_progress_bar", "false")  # fmt: skip
    fit = ("fit", "--config", demo, *protocol, *short, "--model.lr_scheduler.milestones", "[2, 6]")
    assert main(*fit, "--trainer.max_epochs", 3) == 0
    assert main("test", "--config", demo, "--ckpt_path", "last", "--trainer.limit_test_batches", 2) == 0
    tested = yaml.safe_load(Path("runs/demo/version_0/config_test.yaml").read_text())
    assert tested["model"]["init_args"]["meta_layer"] == "svd-pade"
    again = ("--model.meta_layer", FIRST, "--trainer.max_epochs", 4, "--ckpt_path", "last")
    assert main(*fit, *again) == 0
    events = EventAccumulator("runs/demo/version_0")
    events.Reload()
    # Logged when a stage begins, when the run is resumed, and at the end of each epoch.
    expected = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]
    assert {(event.step, event.value) for event in events.Scalars("hybrid/stage")} <= set(expected)
    assert dict(expected) == {e.step: e.value for e in events.Scalars("hybrid/stage")}
    capsys.readouterr()
    assert main(*fit, "--trainer.max_epochs", 2) == 1
    assert "MultiStepLR has no learning-rate decay in 2 epochs: give switch_epoch" in capsys.readouterr().err
    assert main(*fit, "--trainer.fast_dev_run", "true") == 0

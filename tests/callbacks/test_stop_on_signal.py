"""Signals in plain Lightning; tests/faults/test_signals.py stops and resumes whole runs."""

import contextlib
import os
import signal

import pytest
import pytorch_lightning as pl
import torch

from callbacks import LastCheckpoint, StopOnSignal, StoppedBySignal
from tests.callbacks.own_module import OwnModule, loader, trainer
from tests.slurm import task, with_scontrol

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot resume mid-epoch")


class Send(pl.Callback):
    """Sends this process signals in its first step, and notes the steps that are finished."""

    def __init__(self, *numbers):
        self.numbers, self.finished = numbers, 0

    def on_before_backward(self, trainer, module, loss):
        if trainer.global_step == 0:
            for number in self.numbers:
                os.kill(os.getpid(), number)

    def on_train_batch_end(self, *_):
        self.finished += 1


@pytest.fixture(autouse=True)
def handlers():
    """The handlers before each test are there again after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ((signal.SIGTERM,), signal.SIGTERM),
        ((signal.SIGUSR1,), signal.SIGUSR1),
        ((signal.SIGUSR1, signal.SIGTERM), signal.SIGUSR1),
        ((signal.SIGTERM, signal.SIGUSR1), signal.SIGUSR1),
    ],
)
def test_the_step_in_progress_is_finished(sent, answered, tmp_path):
    send = Send(*sent)
    with pytest.raises(StoppedBySignal) as stopped:
        trainer(tmp_path, send, StopOnSignal()).fit(OwnModule(), loader())
    assert send.finished == 1
    assert stopped.value.signal is answered
    assert stopped.value.code == 128 + answered


class Data(pl.LightningDataModule):
    resumes_inside_epochs = True

    def train_dataloader(self):
        return loader()


def test_the_step_is_saved_where_a_last_checkpoint_is_kept(tmp_path):
    last = LastCheckpoint(every_n_steps=None)
    run = trainer(tmp_path, last, Send(signal.SIGTERM), StopOnSignal(), enable_checkpointing=True)
    with pytest.raises(StoppedBySignal):
        run.fit(OwnModule(), datamodule=Data())
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 1


class Failing(OwnModule):
    def training_step(self, batch, index):
        raise ArithmeticError


@pytest.mark.parametrize("module", [OwnModule, Failing])
def test_other_handlers_answer_after_the_run(module, tmp_path):
    received = []
    signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    with contextlib.suppress(ArithmeticError):
        trainer(tmp_path, StopOnSignal()).fit(module(), loader())
    signal.raise_signal(signal.SIGUSR1)
    assert received == [signal.SIGUSR1]


@pytest.mark.parametrize("callbacks", [(), (StopOnSignal(),)], ids=["Lightning", "StopOnSignal"])
def test_lightning_saves_within_the_handler(callbacks, tmp_path, monkeypatch):
    """If Lightning alone saves nothing in the middle of a step any more, its handlers need not be replaced."""
    for name, value in task(77).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", with_scontrol(tmp_path))
    in_step = []

    class Warned(OwnModule):
        def training_step(self, batch, index):
            if self.global_step == 0:
                os.kill(os.getpid(), signal.SIGUSR1)
                in_step.append(len(list(tmp_path.glob("hpc_ckpt_*.ckpt"))))
            return super().training_step(batch, index)

    run = trainer(tmp_path, *callbacks)
    try:
        run.fit(Warned(), loader())
    except StoppedBySignal:
        assert callbacks
    assert in_step == [0 if callbacks else 1]
    assert (tmp_path / "asked").read_text() == "requeue 77\n"

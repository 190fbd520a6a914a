"""Stopping a run on SIGTERM or SIGUSR1, on all processes after the same step."""

from __future__ import annotations

import signal
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from ._accumulation import awaits_more_batches
from ._slurm import requeue
from .last_checkpoint import LastCheckpoint

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""The signals that stop a run. If several arrive, the one that comes later here counts: it also requeues the job."""


class StoppedBySignal(SystemExit):
    """Ends a run that has stopped on a signal; the exit status is 128 plus the number of the signal.

    Attributes:
        signal: the signal.
    """

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(128 + received)
        self.signal = received


class StopOnSignal(pl.Callback):
    """Stops the run on SIGTERM or SIGUSR1, after the training step in progress.

    All processes stop after the same step, whichever of them received the signal, and `LastCheckpoint`, if the trainer
    has one, saves that step. During validation a signal waits until the validation has finished. SLURM sends SIGUSR1
    ahead of the time limit with ``#SBATCH --signal=USR1@120``; in a SLURM job SIGUSR1 also requeues the job
    (``scontrol requeue``).

    With several processes the signal is exchanged once per step: one number, at a time when Lightning waits for the
    device anyway.

    Lightning 2.6 answers these signals itself, from within the signal handlers: on SIGUSR1 it saves a checkpoint there,
    possibly in the middle of a step (https://github.com/Lightning-AI/pytorch-lightning/issues/21406), and on SIGTERM
    the processes wait for each other there (https://github.com/Lightning-AI/pytorch-lightning/issues/20806). The
    handlers of this callback take the place of Lightning's and only note the signal.

    Raises:
        StoppedBySignal: on all processes.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None  # by this process
        self._stopping: signal.Signals | None = None  # agreed on by all processes
        self._handlers_before: dict[signal.Signals, Any] = {}
        self._listening = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._received = self._stopping = None
        self._handlers_before = {number: signal.getsignal(number) for number in SIGNALS}
        if stage == "fit":
            self._replace_handlers()
        elif SLURMEnvironment.detect():
            # The warning is meant for fit. Lightning would save a checkpoint and requeue the job.
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._listening = False
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # More signals may arrive while a stopped run ends; they must not interrupt it.
        if not isinstance(exception, StoppedBySignal):
            self.teardown(trainer, pl_module, "fit")

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._replace_handlers()  # Lightning has set its own after `setup`

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._replace_handlers()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # The signal may have arrived during the validation that ended the previous epoch, which is saved by now.
        self._stopping = self._stopping or self._agree(trainer)
        self._stop(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if awaits_more_batches(trainer):
            return
        self._stopping = self._agree(trainer)
        if self._stopping is None:
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LastCheckpoint):
                callback.request_save()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not at the end of the previous step already: Lightning has logged it only now.
        self._stop(trainer)

    def _replace_handlers(self) -> None:
        self._listening = True
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        received = signal.Signals(number)
        if not self._listening:
            # After an error Lightning 2.6 restores the handlers that it found before its own: these.
            signal.signal(received, self._handlers_before[received])
            signal.raise_signal(received)
            return
        self._received = max(received, self._received or received, key=SIGNALS.index)

    def _agree(self, trainer: pl.Trainer) -> signal.Signals | None:
        """The signal that any of the processes received; the same on every process."""
        if trainer.world_size == 1:
            return self._received
        candidates = (None, *SIGNALS)
        own = torch.tensor(candidates.index(self._received), device=trainer.strategy.root_device)
        return candidates[int(trainer.strategy.reduce(own, reduce_op="max"))]

    def _stop(self, trainer: pl.Trainer) -> None:
        if self._stopping is None:
            return
        if self._stopping == signal.SIGUSR1:
            requeue(trainer)
            # srun ends the whole job when one of its processes ends, so none may end before the job is requeued.
            trainer.strategy.barrier()
        raise StoppedBySignal(self._stopping)

"""``last.ckpt``: what a run goes on from after it was killed or stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What a run answers; where it got several, the last of these."""


class StoppedBySignal(SystemExit):
    """A run that saved what it could and stopped; its exit status is 128 and the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``: of every finished epoch, every so many steps within, and when a signal ends the run.

    SIGTERM and SIGUSR1 (which SLURM sends ahead of the time limit, ``#SBATCH --signal=USR1@120``) are answered at the
    end of the training step in progress: the run saves and stops, on all processes at the same step, whichever of them
    got the signal. In a SLURM job, SIGUSR1 also has the job put back into the queue (``scontrol requeue``). In
    validation a signal waits until that is finished; whoever kills the run before, loses what was trained since the
    last save, as after SIGKILL. The run goes on with ``--ckpt_path last``: after the saved step, with the next image of
    the epoch. ``train/top1`` of that epoch is then the mean of the rest of it.

    Inside an epoch it saves only with data that can be gone on with there (`ImageDataModule`), and not between the
    batches of an accumulated gradient.

    Several processes ask each other for signals once a step: one number, where Lightning waits for the device anyway.

    Args:
        every_n_steps: steps between two saves within an epoch; null: none, a killed run repeats its epoch.

    Raises:
        ValueError: for a period that is not positive.
    """

    def __init__(self, every_n_steps: int | None = 1000) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"last.every_n_steps must be at least 1, got {every_n_steps}")
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_n_steps = every_n_steps
        self._received = self._stopping = 0  # indices in SIGNALS, from 1
        self._handlers: dict[signal.Signals, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._received = self._stopping = 0
        self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
        if stage == "fit":
            self._listen()
        elif SLURMEnvironment.detect():  # a warning for fit; Lightning would save and requeue
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        super().on_exception(trainer, pl_module, exception)
        if not isinstance(exception, StoppedBySignal):  # more signals may follow while the run ends
            self.teardown(trainer, pl_module, "fit")

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._listen()
        epochs = trainer.fit_loop.epoch_progress.current
        if epochs.ready == epochs.processed:  # Lightning would count the beginning of an epoch as a step
            trainer.fit_loop.epoch_loop.restarting = False
        if self.every_n_steps is not None and not _resumable(trainer):
            rank_zero_warn("last.every_n_steps is not used: these data cannot be gone on with inside an epoch")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stopping = self._stopping or self._agree(trainer)  # the epoch before is saved, if there was one
        self._stop(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stop(trainer)  # the step before is saved, and by now logged too

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self._stopping = self._agree(trainer)
        inside = batch_idx + 1 < trainer.num_training_batches
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        # at the end of an epoch Lightning goes on with validation, and then saves
        if inside and (due or self._stopping) and _resumable(trainer) and not trainer.fast_dev_run:
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning 2.6 mistakes finished epochs for interrupted ones, and the other way round, with ``max_steps``."""
        loop = checkpoint.get("loops", {}).get("fit_loop")
        if not loop or loop["epoch_progress"]["current"]["processed"] != loop["epoch_progress"]["current"]["ready"]:
            return
        epochs = loop["epoch_progress"]
        if loop["epoch_loop.batch_progress"]["is_last_batch"]:
            for progress in epochs.values():
                progress["completed"] = progress["processed"]
        elif epochs["current"]["ready"]:  # max_steps or max_time ended the run inside this epoch
            for progress in epochs.values():
                progress["processed"] -= 1

    def _listen(self) -> None:
        """In place of Lightning's handlers, which communicate from within, and save in the middle of a step."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        self._received = max(self._received, 1 + SIGNALS.index(signal.Signals(number)))

    def _agree(self, trainer: pl.Trainer) -> int:
        """The signal that any process got, or 0."""
        if trainer.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def _stop(self, trainer: pl.Trainer) -> None:
        if self._stopping:
            received = SIGNALS[self._stopping - 1]
            if received == signal.SIGUSR1:
                _requeue(trainer)
                trainer.strategy.barrier()  # a process that ends would have the job's others killed
            raise StoppedBySignal(received)


def _resumable(trainer: pl.Trainer) -> bool:
    fixed = trainer.overfit_batches > 0  # type: ignore[attr-defined] # in an order of Lightning's own
    return not fixed and getattr(trainer.datamodule, "resumes_inside_epochs", False)  # type: ignore[attr-defined]


def _requeue(trainer: pl.Trainer) -> None:
    """Put a SLURM job back into the queue, as Lightning would; other runs are started again by whoever stopped them."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None and SLURMEnvironment.detect():
        environment = SLURMEnvironment()
    if not (trainer.is_global_zero and isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
        return
    array, job = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ["SLURM_JOB_ID"]
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else job
    if not re.fullmatch(r"[\d_]+", job) or shutil.which("scontrol") is None:
        rank_zero_warn(f"job {job} is not requeued: there is no scontrol here")
        return
    status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    rank_zero_info(f"scontrol requeue {job}: " + ("done" if status == 0 else f"failed with exit status {status}"))

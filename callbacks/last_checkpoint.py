"""``last.ckpt``: what a run goes on from after it was killed or stopped."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
    validation a signal waits until the epoch is finished and the next step done; whoever kills the run before that,
    loses what was trained since the last save, as after SIGKILL. The run goes on with ``--ckpt_path last``: after the
    saved step, with the next image of the epoch. ``train/top1`` of that epoch is then the mean of the rest of it.

    Inside an epoch it saves only with data that can be gone on with there (`ImageDataModule`), and not between the
    batches of an accumulated gradient.

    Args:
        every_n_steps: steps between two saves within an epoch; null: none, a killed run repeats its epoch.

    Raises:
        ValueError: for a period that is not positive.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"last.every_n_steps must be at least 1, got {every_n_steps}")
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every_n_steps = every_n_steps
        self._received = self._stopping = 0

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._listen()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._listen()
        if self.every_n_steps is not None and not _resumable(trainer):
            rank_zero_warn("last.every_n_steps is not used: these data cannot be gone on with inside an epoch")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._stopping:  # the step before is saved, and by now logged too
            raise StoppedBySignal(self._stopping)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        received = self._agreed(trainer)
        inside = batch_idx + 1 < trainer.num_training_batches
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        # at the end of an epoch Lightning goes on with validation, and then saves
        if inside and (due or received) and _resumable(trainer) and not trainer.fast_dev_run:
            self._save_checkpoint(trainer, self.format_checkpoint_name({}))
        if received and inside:
            if received == signal.SIGUSR1:
                _requeue(trainer)
            self._stopping = received

    def _listen(self) -> None:
        """In place of Lightning's handlers, which communicate from within, and save in the middle of a step."""
        for number in SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, _: Any) -> None:
        self._received = number

    def _agreed(self, trainer: pl.Trainer) -> int:
        """The signal that any process got, or 0."""
        if not trainer.strategy.reduce_boolean_decision(self._received != 0, all=False):
            return 0
        warned = trainer.strategy.reduce_boolean_decision(self._received == signal.SIGUSR1, all=False)
        return signal.SIGUSR1 if warned else signal.SIGTERM


def _resumable(trainer: pl.Trainer) -> bool:
    return getattr(trainer.datamodule, "resumes_inside_epochs", False)  # type: ignore[attr-defined]


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

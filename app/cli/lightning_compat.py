"""Workarounds for Lightning that the command line needs; those of models and callbacks are beside them.

Each names the version that it is for and the upstream issue. The tests in tests/app/cli/test_lightning_compat.py fail
once Lightning is fixed, and the workaround can go.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import threading
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed
from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision

from app.console.files import write_file

PATIENCE = 5.0
"""Seconds that the processes of a failed run are given to print their own error and end."""

UNFOUNDED_WARNINGS = (
    # Lightning 2.6 with torch >= 2.12: its own use of a deprecated name of torch
    # (https://github.com/Lightning-AI/pytorch-lightning/issues/21326).
    ".*LeafSpec.*",
    # Advice that does not hold for data in memory; no issue found.
    ".*does not have many workers.*",
    # Our sampler resumes mid-epoch, but Lightning 2.6 recognises that only in loaders that keep their position
    # themselves (https://github.com/Lightning-AI/pytorch-lightning/issues/18780).
    ".*your dataloader is not resumable.*",
)
"""Texts of warnings of Lightning that do not apply to this program."""


def ignore_unfounded_warnings() -> None:
    """Hide the warnings in `UNFOUNDED_WARNINGS`."""
    for text in UNFOUNDED_WARNINGS:
        warnings.filterwarnings("ignore", message=text)


def interrupted_by_user(error: BaseException) -> bool:
    """Return whether Ctrl+C ended the run.

    Lightning 2.6 ends the program with exit status 1 in place of raising the `KeyboardInterrupt` to the caller
    (https://github.com/Lightning-AI/pytorch-lightning/pull/19976), which is then the context of the `SystemExit`.
    """
    context: BaseException | None = error
    while context is not None:
        if isinstance(context, KeyboardInterrupt):
            return True
        context = context.__context__
    return False


def end_child_processes(trainer: pl.Trainer) -> None:
    """Let the processes that this one started print what went wrong, and end those that hang.

    Lightning 2.6 watches the processes in a thread. Once one of them has ended with an error it kills this process,
    which then ends with SIGKILL in place of an error of one line and exit status 1
    (https://github.com/Lightning-AI/pytorch-lightning/issues/16285). The thread ends when it has none left to watch.
    """
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []
    for process in getattr(trainer.strategy.launcher, "procs", []):
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def leave_process_group() -> None:
    """End the communication between the processes of a successful run.

    Lightning 2.6 does so for NCCL only (https://github.com/Lightning-AI/pytorch-lightning/pull/19931). A process that
    ends while the threads of gloo are alive may be aborted on its way out
    (https://github.com/pytorch/pytorch/issues/109478), which torchrun and SLURM take for a failed run.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def allocation_without_srun() -> bool:
    """Return whether the trainer cannot be made because a SLURM allocation is used without ``srun``.

    Lightning 2.6 takes such an allocation for a job step, and fails with the name of an environment variable or of a
    SLURM option (https://github.com/Lightning-AI/pytorch-lightning/issues/19762). It cannot be checked beforehand: a
    single process is fine there, and only Lightning knows how many processes ``auto`` devices stand for.
    """
    return SLURMEnvironment.detect() and "SLURM_PROCID" not in os.environ


def refuse_checkpoint_of_requeue(options: Any) -> None:
    """Raise an error if Lightning would load a checkpoint that was not asked for.

    In a SLURM job, Lightning 2.6 resumes from what its own requeue left in the root folder, whichever job and model it
    belongs to (https://github.com/Lightning-AI/pytorch-lightning/issues/12369).

    Raises:
        ValueError: if there is such a file.
    """
    left = sorted(Path(options["trainer"].get("default_root_dir") or ".").glob("hpc_ckpt_*.ckpt"))
    if left and SLURMEnvironment.detect():
        raise ValueError(
            f"{left[0]} would be loaded, whichever run it is from: move it away, or resume with --ckpt_path"
        )


class LoopCounters(pl.Callback):
    """Repairs the counters of Lightning's loops when a run is resumed, so that every epoch is finished, and ends once.

    See `repair_epoch_counters` and `begin_epoch_anew`, which needs it.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        repair_epoch_counters(checkpoint)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        begin_epoch_anew(trainer)


def repair_epoch_counters(checkpoint: dict[str, Any]) -> None:
    """Correct the epoch counters of a checkpoint that was saved at the end of an epoch or of a run.

    - Lightning 2.6 saves at the end of an epoch before it counts the epoch as completed. With ``max_steps`` a resumed
      run takes that literally and ends the epoch again, with a second step of the schedule
      (https://github.com/Lightning-AI/pytorch-lightning/issues/19617).
    - An epoch within which ``max_steps`` or ``max_time`` ended the run counts as processed. A run that is resumed with
      ``max_epochs`` alone skips the rest of it (https://github.com/Lightning-AI/pytorch-lightning/issues/7629).
    """
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if not loop:
        return
    epochs = loop["epoch_progress"]
    if epochs["current"]["processed"] != epochs["current"]["ready"]:
        return  # saved mid-epoch, with correct counters
    if loop["epoch_loop.batch_progress"]["is_last_batch"]:
        for progress in epochs.values():
            progress["completed"] = progress["processed"]
    elif epochs["current"]["ready"]:
        for progress in epochs.values():
            progress["processed"] -= 1


def begin_epoch_anew(trainer: pl.Trainer) -> None:
    """Begin the next epoch, if the checkpoint was saved between two epochs.

    With ``max_steps``, Lightning 2.6 assumes that every resumed run restarts mid-epoch. After `repair_epoch_counters`
    it would end the epoch that it is about to begin (https://github.com/Lightning-AI/pytorch-lightning/issues/19617).
    """
    epochs = trainer.fit_loop.epoch_progress.current
    if epochs.ready == epochs.processed:
        trainer.fit_loop.epoch_loop.restarting = False


class LoadInPrecisionOfRun(pl.Callback):
    """Converts the model to the precision of the run before a checkpoint is loaded into it.

    Lightning 2.6 converts it afterwards, so that weights of 64 bits are rounded to 32 on their way into a resumed run
    (no issue found; the order is that of https://github.com/Lightning-AI/pytorch-lightning/pull/18209).
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        precision = trainer.precision_plugin
        if isinstance(precision, DoublePrecision | HalfPrecision):
            precision.convert_module(pl_module)


def keep_csv_logs(file_name: str) -> None:
    """Let CSV loggers append to an existing log instead of removing it.

    Lightning 2.6 removes ``metrics.csv`` when a logger opens the folder of an existing run, also for a test
    (https://github.com/Lightning-AI/pytorch-lightning/pull/19446), and writes a longer header over the file in place.

    Args:
        file_name: name of the file: evaluations have their own, as they may run while the run is trained.
    """
    _ExperimentWriter.NAME_METRICS_FILE = file_name
    _ExperimentWriter._check_log_dir_exists = _read_columns  # type: ignore[assignment,method-assign]
    _ExperimentWriter._rewrite_with_new_header = _rewrite  # type: ignore[assignment,method-assign]


def _read_columns(writer: _ExperimentWriter) -> None:
    """Take over the columns of an existing log, in place of Lightning's removal of it."""
    path = Path(writer.metrics_file_path)
    if not path.is_file():
        return
    with path.open(newline="") as file:
        writer.metrics_keys = next(csv.reader(file), [])
    if writer.metrics_keys != sorted(writer.metrics_keys):  # Lightning sorts them before it appends
        _rewrite(writer, sorted(writer.metrics_keys))


def _rewrite(writer: _ExperimentWriter, fieldnames: list[str]) -> None:
    path = Path(writer.metrics_file_path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, fieldnames, extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    write_file(path, text.getvalue().encode())

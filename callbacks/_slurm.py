"""Requeueing of SLURM jobs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn


def requeue(trainer: pl.Trainer) -> None:
    """Put the SLURM job of a run back into the queue; does nothing for a run that is not a SLURM job.

    The first process runs ``scontrol requeue`` and reports the result. `SLURMEnvironment` with ``auto_requeue=False``
    turns this off.
    """
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None and SLURMEnvironment.detect():
        environment = SLURMEnvironment()
    if not (trainer.is_global_zero and isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
        return
    job = _job_id()
    if not re.fullmatch(r"[\d_]+", job) or shutil.which("scontrol") is None:
        rank_zero_warn(f"job {job} is not requeued: scontrol is not installed here")
        return
    status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    outcome = "done" if status == 0 else f"failed with exit status {status}"
    rank_zero_info(f"scontrol requeue {job}: {outcome}")


def _job_id() -> str:
    """The number of the job; for a task of a job array, ``ARRAY_TASK``."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]

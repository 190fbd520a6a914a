"""Where a run puts its files, and where its checkpoints are found again: the folders of loggers and of SLURM jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn


def run_folder(options: Any) -> Path:
    """Where the logger puts the versions of this run (``runs/demo``), or Lightning its files where there is none."""
    arguments = logger_arguments(options)
    if arguments is None:
        return Path(options["trainer"].get("default_root_dir") or ".")
    return Path(arguments["save_dir"], arguments["name"] or "")


def find_checkpoint(which: str, options: Any, fitting: bool) -> str | None:
    """The newest ``last`` or ``best`` checkpoint of this run: of the version that is given, else of all."""
    run, logger = run_folder(options), logger_arguments(options)
    versions = f"{_version_folder(logger['version']) or 'version_*'}/" if logger else ""
    found = sorted(run.glob(f"{versions}checkpoints/{which}.ckpt"), key=lambda path: path.stat().st_mtime)
    if found:
        if fitting and which == "last" and logger:
            if logger["version"] is None:
                _warn_of_newer(run, found[-1])
            logger["version"] = version_of(found[-1].parents[1])
        return str(found[-1])
    if not fitting:
        raise FileNotFoundError(f"--ckpt_path {which}: no checkpoint below {run}")
    rank_zero_info(f"no checkpoint below {run / versions} yet: starting from the beginning")
    return None


def _warn_of_newer(run: Path, last: Path) -> None:
    """Name the newest run that was started after the last save of `last` and has saved nothing itself."""
    configs = [
        path for path in run.glob("version_*/config.yaml") if not (path.parent / "checkpoints/last.ckpt").exists()
    ]
    newest = max(configs, key=lambda path: path.stat().st_mtime, default=last)
    if newest.stat().st_mtime > last.stat().st_mtime:
        rank_zero_warn(f"{newest.parent} is newer, but has no last.ckpt: going on with {last}, of another run")


def stay_in_folder_of_job(options: Any) -> None:
    """A SLURM job that is requeued goes on in its folder, ``version_JOBID``, and looks for checkpoints only there.

    Raises:
        ValueError: for a second run of the job there, which would replace the first.
    """
    logger = logger_arguments(options)
    job = SLURMEnvironment.job_id() if logger is not None and SLURMEnvironment.detect() else None
    if job is None or logger["version"] is not None:
        return
    logger["version"] = job
    folder = run_folder(options) / _version_folder(job)
    if (folder / "checkpoints" / "last.ckpt").exists() and not options.get("ckpt_path") and not restarted():
        raise ValueError(
            f"job {job} has a run in {folder} already: go on with it, --ckpt_path last, or give this one its own "
            "--trainer.logger.name or --trainer.logger.version"
        )


def restarted() -> bool:
    """Whether SLURM started the same command again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def refuse_requeue_of_lightning(options: Any) -> None:
    """Lightning, in a SLURM job, loads what a requeue of its own left in the root folder: any job, any model.

    Raises:
        ValueError: if there is such a file.
    """
    left = sorted(Path(options["trainer"].get("default_root_dir") or ".").glob("hpc_ckpt_*.ckpt"))
    if left and SLURMEnvironment.detect():
        raise ValueError(f"{left[0]} would be loaded, wherever it is from: move it away, or go on with --ckpt_path")


def _version_folder(version: int | str | None) -> str:
    """The name of the folder in which a logger keeps a version."""
    return f"version_{version}" if isinstance(version, int) else version or ""


def version_of(folder: Path) -> int | str:
    """The version that a logger keeps in a folder: a number, where the logger counted."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdecimal() else folder.name


def logger_arguments(options: Any) -> Any:
    """The arguments of the (first) logger, if it is one that keeps versions of runs in a folder."""
    logger = options["trainer.logger"]
    logger = logger[0] if isinstance(logger, list) and logger else logger
    arguments = getattr(logger, "init_args", None)
    return arguments if arguments is not None and "version" in arguments and "save_dir" in arguments else None

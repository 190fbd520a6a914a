"""The folders of runs: where a run puts its files, and where its checkpoints are found again."""

from __future__ import annotations

import os
from pathlib import Path

from jsonargparse import Namespace
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn


def run_folder(options: Namespace) -> Path:
    """Return the folder of the versions of this run (``runs/demo``), or without a logger that of Lightning's files."""
    arguments = logger_arguments(options)
    if arguments is None:
        return Path(options["trainer"].get("default_root_dir") or ".")
    return Path(arguments["save_dir"], arguments["name"] or "")


def find_checkpoint(which: str, options: Namespace, fitting: bool) -> str | None:
    """Return the newest ``last`` or ``best`` checkpoint of this run: of the version that is given, else of all.

    A fit continues in the folder of its ``last`` checkpoint, and starts from the beginning where there is none yet.

    Raises:
        FileNotFoundError: if there is none, except for a fit.
    """
    run, logger = run_folder(options), logger_arguments(options)
    versions = Path()
    if logger is not None:
        versions = Path(_version_folder(logger["version"]) or "version_*")
    found = sorted(run.glob(f"{versions}/checkpoints/{which}.ckpt"), key=_written)
    if not found:
        if not fitting:
            raise FileNotFoundError(f"--ckpt_path {which}: no checkpoint below {run}")
        rank_zero_info(f"no checkpoint below {run / versions} yet: starting from the beginning")
        return None
    newest = found[-1]
    if fitting and which == "last" and logger is not None:
        if logger["version"] is None:
            _warn_of_newer(run, newest)
        logger["version"] = version_of(newest.parents[1])
    return str(newest)


def _written(path: Path) -> float:
    return path.stat().st_mtime


def _warn_of_newer(run: Path, last: Path) -> None:
    """Name the newest run that was started after the last save of `last` and has saved nothing itself."""
    newest = last
    for config in run.glob("version_*/config.yaml"):
        if not (config.parent / "checkpoints/last.ckpt").exists():
            newest = max(newest, config, key=_written)
    if newest != last:
        rank_zero_warn(f"{newest.parent} is newer, but has no last.ckpt: resuming from {last}, of another run")


def stay_in_folder_of_job(options: Namespace) -> None:
    """Set the version of a SLURM job: one that is requeued resumes in its folder, ``version_JOBID``, and only there.

    Raises:
        ValueError: if the job starts a second run, which would replace the first.
    """
    logger = logger_arguments(options)
    if logger is None or logger["version"] is not None or not SLURMEnvironment.detect():
        return
    job = SLURMEnvironment.job_id()
    if job is None:
        return
    logger["version"] = job
    folder = run_folder(options) / _version_folder(job)
    if (folder / "checkpoints" / "last.ckpt").exists() and not options.get("ckpt_path") and not restarted():
        raise ValueError(
            f"job {job} has a run in {folder} already: resume it, --ckpt_path last, or give this one its own "
            "--trainer.logger.name or --trainer.logger.version"
        )


def restarted() -> bool:
    """Return whether SLURM started the same command again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def _version_folder(version: int | str | None) -> str:
    """Return the name of the folder in which a logger keeps a version."""
    return f"version_{version}" if isinstance(version, int) else version or ""


def version_of(folder: Path) -> int | str:
    """Return the version that a logger keeps in a folder: a number if the logger counted."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdecimal() else folder.name


def logger_arguments(options: Namespace) -> Namespace | None:
    """Return the arguments of the (first) logger if it keeps versions of runs in a folder, else ``None``."""
    logger = options["trainer.logger"]
    if isinstance(logger, list) and logger:
        logger = logger[0]
    arguments: Namespace | None = getattr(logger, "init_args", None)
    if arguments is None or "version" not in arguments or "save_dir" not in arguments:
        return None
    return arguments

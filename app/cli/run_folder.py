"""The folders of runs: where a run writes its files, and where its checkpoints are found again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace, dict_to_namespace
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from app.cli.saved_checkpoints import find_best, find_last, written


def run_folder(options: Namespace) -> Path:
    """Return the folder of the versions of this run (``runs/demo``), or Lightning's own folder without a logger."""
    arguments = logger_arguments(options)
    if arguments is None:
        return Path(options["trainer"].get("default_root_dir") or ".")
    return Path(arguments["save_dir"], arguments.get("name") or "")


def find_checkpoint(which: str, options: Namespace, fitting: bool) -> str | None:
    """Return the newest ``last`` or ``best`` checkpoint of this run: of the given version, or of all versions.

    A fit continues in the folder of its ``last`` checkpoint, and starts from the beginning where there is none yet.

    Raises:
        FileNotFoundError: if there is none, except for a fit.
        OSError: if a folder cannot be searched: it may hold the checkpoint that is asked for.
    """
    run, logger = run_folder(options), logger_arguments(options)
    folders = _checkpoint_folders(run, logger)
    if which == "best":
        found = find_best(folders, options["checkpoint"]["filename"], options["checkpoint"]["dirpath"])
    else:
        found = find_last(folders)
    if found is None:
        if not fitting:
            raise FileNotFoundError(f"--ckpt_path {which}: no checkpoint below {run}")
        rank_zero_info(f"no checkpoint below {run} yet: starting from the beginning")
        return None
    if fitting and which == "last" and logger is not None:
        if logger["version"] is None:
            _warn_of_newer(run, found)
        set_version(options, version_of(found.parents[1]))
    return str(found)


def _checkpoint_folders(run: Path, logger: Namespace | None) -> list[Path]:
    """The folders of checkpoints of the version that is given, else of all versions."""
    if logger is None:
        return [run / "checkpoints"]
    version = _version_folder(logger["version"])
    if version:
        return [run / version / "checkpoints"]
    try:
        names = [folder.name for folder in run.iterdir()]
    except FileNotFoundError:
        names = []
        if run.is_symlink():
            raise OSError(f"{run} is a link to a folder that does not exist") from None
    except OSError as error:
        raise OSError(f"{run} cannot be searched for checkpoints: {error.strerror}") from error
    return [run / name / "checkpoints" for name in names if name.startswith("version_")]


def _warn_of_newer(run: Path, last: Path) -> None:
    """Name the newest run that was started after the last save of `last` and has saved nothing itself."""
    newest = last
    for config in run.glob("version_*/config.yaml"):
        if not (config.parent / "checkpoints/last.ckpt").exists():
            newest = max(newest, config, key=written)
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
    set_version(options, job)
    folder = run_folder(options) / _version_folder(job)
    if (folder / "checkpoints" / "last.ckpt").exists() and not options.get("ckpt_path") and not restarted():
        raise ValueError(
            f"job {job} already has a run in {folder}: resume it with --ckpt_path last, or give this one its own "
            "--trainer.logger.name or --trainer.logger.version"
        )


def log_results_in_run(options: Namespace) -> None:
    """Set the version of the run that a checkpoint belongs to, so that results are logged beside its training."""
    if not options.get("ckpt_path"):
        return
    run = run_folder(options).resolve()
    for folder in Path(options["ckpt_path"]).resolve().parents:
        if folder.name == "checkpoints" and folder.parents[1] == run:
            set_version(options, version_of(folder.parent))


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


def set_version(options: Namespace, version: int | str) -> None:
    """Set the version of the first logger, and of those that keep theirs in the same folder."""
    first = logger_arguments(options)
    for logger in _loggers(options):
        arguments = _version_arguments(logger)
        if arguments is None or first is None:
            continue
        if (arguments["save_dir"], arguments.get("name")) == (first["save_dir"], first.get("name")):
            arguments["version"] = version


def logger_arguments(options: Namespace) -> Namespace | None:
    """Return the arguments of the (first) logger if it keeps versions of runs in a folder, else ``None``."""
    loggers = _loggers(options)
    return _version_arguments(loggers[0]) if loggers else None


def _loggers(options: Namespace) -> list[Any]:
    logger = options["trainer.logger"]
    if isinstance(logger, list):
        return logger
    return [logger]


def _version_arguments(logger: Any) -> Namespace | None:
    arguments: Namespace | None = getattr(logger, "init_args", None)
    if arguments is None or "version" not in arguments or "save_dir" not in arguments:
        return None
    return arguments


def name_default_logger(options: Namespace) -> None:
    """Put the logger that ``trainer.logger: true`` means in its place, so that its folder is known beforehand."""
    trainer = options["trainer"]
    # Lightning takes null for true, except where it must not log at all.
    if trainer["logger"] is True or (trainer["logger"] is None and not trainer.get("barebones")):
        root = str(trainer.get("default_root_dir") or ".")
        arguments = {"save_dir": root, "name": "lightning_logs", "version": None}
        logger = {"class_path": "pytorch_lightning.loggers.TensorBoardLogger", "init_args": arguments}
        trainer["logger"] = dict_to_namespace(logger)

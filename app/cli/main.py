"""The command line: LightningCLI with our defaults, our names, and errors of one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.environments import SLURMEnvironment
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

import app.models.classifier  # noqa: F401 - importing makes the classes known by their short names
import callbacks
import datamodules  # noqa: F401
from app.cli.checkpoint_io import AtomicCheckpointIO
from app.cli.hyperparameters import foreign, read_run, take_architecture, take_hyperparameters
from app.cli.lightning_compat import LoopCounters
from app.cli.processes import leave_process_group
from app.cli.run_folder import (
    find_checkpoint,
    logger_arguments,
    refuse_requeue_of_lightning,
    restarted,
    run_folder,
    stay_in_folder_of_job,
    version_of,
)
from app.console.errors import (
    describe,
    errors_of_threads,
    fail,
    follows,
    one_line,
    passed,
    print_newline_after_progress_bar,
    wants_traceback,
)

RESTORING = ("checkpoint_connector.py", ("restore", "_restore", "resume"))
"""Where Lightning takes a checkpoint apart: a file, and the beginnings of the names of functions."""

PATIENCE = 5.0
"""Seconds that the processes of a failed run have to end."""

UNREADABLE_IMAGES = 3
"""Exit status of a prediction that went through, but could not read some of the images."""

ALWAYS: tuple[type[pl.Callback], ...] = (
    callbacks.SameCheckpoint,
    callbacks.StopOnSignal,
    callbacks.FiniteEvaluation,
    callbacks.FiniteCheckpoints,
    LoopCounters,
)
"""Callbacks of every run that have no options."""


class Parser(LightningArgumentParser):
    """Ends with one line instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if wants_traceback() and ex is not None:
            raise ex
        if "Problems parsing config" in message:
            message = f"{' '.join(_given_files(sys.argv[1:]))} is no valid YAML: {message}"
        given = {argument.partition("=")[0] for argument in sys.argv}
        if (key := re.search(r'Parser key "(\w+)"', message)) and f"--{key[1]}" in given:
            message = message.replace(key[0], f'Parser key "--{key[1]}"')
        fail(message, status=2)


class CLI(LightningCLI):
    """``python train.py {fit,validate,test,predict} --config FILE [--model.KEY VALUE ...]``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/top1",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
            }
        )
        parser.add_lightning_class_args(callbacks.LastCheckpoint, "last")
        parser.add_lightning_class_args(callbacks.NonFinitePolicy, "non_finite")
        parser.add_lightning_class_args(callbacks.PredictionWriter, "predictions")
        parser.add_argument(
            "--published",
            type=dict[str, Any] | None,
            help="for `python -m app.report`: the row of a paper that this run repeats, as {table, row, top1_error, "
            "top5_error, top1_accuracy, top5_accuracy} in percent, or such a dictionary for each meta-layer; it stays "
            "in config.yaml and changes nothing",
        )

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint, and settle the model between the checkpoint and the command line."""
        subcommand = self.config["subcommand"]
        options, fitting = self.config[subcommand], subcommand == "fit"
        if fitting:
            stay_in_folder_of_job(options)
            if restarted() and options.get("ckpt_path") != "last":
                options["ckpt_path"] = find_checkpoint("last", options, fitting) or options.get("ckpt_path")
        if options.get("ckpt_path") in ("last", "best"):
            options["ckpt_path"] = find_checkpoint(options["ckpt_path"], options, fitting)
        path = options.get("ckpt_path")
        if not path and subcommand == "predict":
            raise ValueError("predict needs a trained network: --ckpt_path best, last, or a file")
        if not path:
            refuse_requeue_of_lightning(options)
            take_architecture(options["model"])
            return
        if not Path(path).is_file():
            raise FileNotFoundError(f"--ckpt_path {path} does not exist")
        take_hyperparameters(read_run(path, fitting), options["model"], path)

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        if not options["trainer.logger"]:  # Lightning refuses the learning-rate monitor without one
            self.trainer_defaults["callbacks"] = [callback() for callback in ALWAYS]
        self.save_config_kwargs = {"overwrite": True}  # a requeued job starts in the folder of its run
        if self.subcommand == "fit":
            return
        self.save_config_kwargs["config_filename"] = f"config_{self.subcommand}.yaml"
        # results of a checkpoint belong to its run
        folder = Path(options.get("ckpt_path") or "").resolve().parent
        logger = logger_arguments(options)
        if logger and folder.name == "checkpoints" and folder.parents[1] == run_folder(options).resolve():
            logger["version"] = version_of(folder.parent)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (KeyError, RuntimeError) as error:
            if SLURMEnvironment.detect() and "SLURM_PROCID" not in os.environ:
                raise ValueError(
                    "this is a SLURM allocation, but the command was not started by srun: use srun python train.py "
                    "..., or name the allocation interactive (salloc -J interactive)"
                ) from error
            raise
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user may have chosen another
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        if callable(signal.getsignal(signal.SIGINT)):  # until here train.py answered; nohup's ignoring stays
            signal.signal(signal.SIGINT, signal.default_int_handler)
        options = self.config[subcommand]
        try:
            with errors_of_threads(str(run_folder(options))):
                super()._run_subcommand(subcommand)
        except BaseException as error:
            _end_processes(self.trainer)
            if follows(error, KeyboardInterrupt):
                goes_on = ": --ckpt_path last goes on after the last save" if subcommand == "fit" else ""
                print(f"interrupted{goes_on}", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            if isinstance(error, SIGTERMException) and subcommand != "fit":
                print("stopped by SIGTERM", file=sys.stderr)
                sys.exit(128 + signal.SIGTERM)
            if isinstance(error, LookupError | TypeError | AttributeError) and passed(error, *RESTORING):
                raise foreign(options["ckpt_path"], f"{type(error).__name__} {error} while it was restored") from error
            raise

    def after_fit(self) -> None:
        """The last line: how good, and where."""
        log_dir = self.trainer.log_dir  # a broadcast: every process takes part
        if not self.trainer.is_global_zero:
            return
        done, top1 = self.trainer.current_epoch, self.trainer.callback_metrics.get("val/top1")
        if not done:
            print(f"no epoch was finished (max_epochs {self.trainer.max_epochs})")
            return
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_score", None)
        parts = [f"{done} epochs done, no validation now" if top1 is None else f"validation top-1 {top1:.4f}"]
        if checkpoint is not None and best is not None:
            parts[0] += f" (best {best:.4f})"
            parts += [f"checkpoint {_relative(checkpoint.best_model_path)}"]
        if log_dir:
            parts += [f"log {_relative(log_dir)}"]
        print("; ".join(parts))

    def after_predict(self) -> None:
        writer = next(c for c in self.trainer.callbacks if isinstance(c, callbacks.PredictionWriter))
        if self.trainer.is_global_zero:
            for file, error in writer.unreadable:
                print(f"unreadable, skipped: {file}: {error}", file=sys.stderr)
            if writer.written:
                print(f"{len(writer.rows)} images predicted, {len(writer.unreadable)} unreadable: {writer.output}")
        if writer.unreadable:
            sys.exit(UNREADABLE_IMAGES)


def main(cli: type[CLI] = CLI) -> None:
    """Run the command line `cli`; an error is one line, with its traceback where ``APP_TRACEBACK`` is set."""
    # Lightning 2.6 with newer torch: its own use of a deprecated name, and advice that does not hold for data in memory
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # our data can be gone on with inside an epoch: datamodules/order.py
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(str(message))}\n"
    try:
        cli(
            trainer_defaults={
                "logger": {
                    "class_path": "TensorBoardLogger",
                    "init_args": {"save_dir": "runs", "name": "run", "default_hp_metric": False},
                },
                "callbacks": [LearningRateMonitor(), *(callback() for callback in ALWAYS)],
            },
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
        )
        leave_process_group()
    except SIGTERMException:
        print("stopped by SIGTERM before the training began", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except callbacks.StoppedBySignal as stop:
        rank_zero_info(f"stopped by {stop.signal.name}: --ckpt_path last goes on where the run was saved")
        leave_process_group()
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if wants_traceback():
            raise
        print_newline_after_progress_bar(error)
        fail(describe(error))


def _end_processes(trainer: pl.Trainer) -> None:
    """Let the processes that this one started say what is wrong, and end those that hang.

    Lightning watches the same list, and would kill this process when one of them has ended.
    """
    watched = getattr(trainer.strategy.launcher, "procs", [])
    processes = watched.copy()
    watched.clear()
    for process in processes:
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def _given_files(arguments: list[str]) -> list[str]:
    """What stands behind ``--config`` on the command line."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return [
        value if name in ("-c", "--config") else name for name, value in pairs if name.startswith(("-c", "--config"))
    ]


def _relative(path: str) -> str:
    return os.path.relpath(path)

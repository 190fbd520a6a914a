"""The command line: LightningCLI with our defaults, our names, and errors of one line."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Callback, Checkpoint, LearningRateMonitor
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_info
from pytorch_lightning.utilities.exceptions import SIGTERMException

import app.models.classifier  # noqa: F401 - importing makes the classes known by their short names
import callbacks
import datamodules  # noqa: F401
from app.cli.checkpoint_io import AtomicCheckpointIO
from app.cli.checkpoint_paths import CheckpointPaths
from app.cli.given_arguments import given_model_keys
from app.cli.hyperparameters import merge_architecture, merge_run
from app.cli.last_line import end_progress_bar, fit_line, print_predictions
from app.cli.lightning_compat import (
    LoadInPrecisionOfRun,
    LoopCounters,
    allocation_without_srun,
    end_child_processes,
    ignore_unfounded_warnings,
    interrupted_by_user,
    keep_csv_logs,
    leave_process_group,
    refuse_checkpoint_of_requeue,
)
from app.cli.messages import explain
from app.cli.number_of_classes import take_number_of_classes
from app.cli.parser import DESCRIPTION, HelpFormatter, Parser
from app.cli.restoration import CheckedRestoration, errors_name_the_checkpoint
from app.cli.run_checkpoint import read_run
from app.cli.run_folder import (
    find_checkpoint,
    log_results_in_run,
    name_default_logger,
    restarted,
    run_folder,
    stay_in_folder_of_job,
)
from app.cli.run_lock import folders_to_own, is_first_process, owning, refuse_existing_run
from app.cli.saved_config import SavedConfig
from app.cli.text_files import check_text_files
from app.console.errors import LONGEST_LINE, fail, one_line, wants_traceback
from app.console.plugins import import_plugins
from app.console.text import brief
from app.console.threads import errors_of_threads
from callbacks.best_checkpoint import BestCheckpoint

UNREADABLE_IMAGES = 3
"""Exit status of a prediction that finished, but could not read some of the images."""

ALWAYS: tuple[type[pl.Callback], ...] = (
    CheckedRestoration,
    callbacks.SameCheckpoint,
    callbacks.StopOnSignal,
    callbacks.FiniteEvaluation,
    callbacks.FiniteCheckpoints,
    LoadInPrecisionOfRun,
    LoopCounters,
    CheckpointPaths,
)
"""Callbacks of every run that have no options."""

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

NODE_FAILURE = 120.0
"""Seconds that a requeued job waits for its run folder: NFS releases the locks of a node that has died after 90."""

# Configurations of runs from before the files moved name the classifier by its old module. The parser finds it there,
# because app.models.classifier is registered under that name too, and `CLI.parse_arguments` then writes the new one.
OLD_MODULE, NEW_MODULE = "app.classifier", "app.models.classifier"


class CLI(LightningCLI):
    """``python train.py {fit,validate,test,predict} --config FILE [--model.KEY VALUE ...]``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.add_lightning_class_args(callbacks.LastCheckpoint, "last")
        parser.add_lightning_class_args(callbacks.NonFinitePolicy, "non_finite")
        parser.add_lightning_class_args(callbacks.PredictionWriter, "predictions")
        parser.add_argument(
            "--published",
            type=dict[str, Any] | None,
            help="for `python -m app.report`: the row of a paper that this run repeats, as {table, row, top1_error, "
            "top5_error, top1_accuracy, top5_accuracy} in percent, or such a dictionary for each meta-layer; it is "
            "stored in config.yaml and does not affect the run",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments of `main`; Lightning would warn that the program has arguments of its own too."""
        self.arguments: list[str] = list(args or [])
        check_text_files(self.arguments)
        self.config = parser.parse_args(self.arguments)
        model = self.config[self.config["subcommand"]]["model"]
        if model["class_path"].startswith(f"{OLD_MODULE}."):
            model["class_path"] = model["class_path"].replace(OLD_MODULE, NEW_MODULE, 1)

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint, and merge its hyper-parameters with the configuration.

        Lightning 2.6 lets those of the checkpoint win over the command line too
        (https://github.com/Lightning-AI/pytorch-lightning/pull/21455).
        """
        subcommand = self.config["subcommand"]
        options = self.config[subcommand]
        name_default_logger(options)
        self.last_asked_for = options.get("ckpt_path") == "last" or restarted()
        if subcommand == "fit":
            stay_in_folder_of_job(options)
        path = self._find_checkpoint(subcommand, options)
        if path:
            self._merge_checkpoint(subcommand, options, path)
        elif subcommand == "predict":
            raise ValueError("predict needs a trained network: --ckpt_path best, last, or a file")
        else:
            refuse_checkpoint_of_requeue(options)
            if options["model"].get("init_args.init_from"):
                merge_architecture(options["model"], self._given_model_keys(options))
        # Here, because the hyper-parameters for checkpoints are copied when the first class is instantiated.
        take_number_of_classes(self._parser(subcommand), options)

    def _find_checkpoint(self, subcommand: str, options: Namespace) -> str | None:
        fitting, path = subcommand == "fit", options.get("ckpt_path")
        if fitting and path != "last" and restarted():
            path = find_checkpoint("last", options, fitting) or path
        if path in ("last", "best"):
            path = find_checkpoint(path, options, fitting)
        options["ckpt_path"] = path
        return path

    def _merge_checkpoint(self, subcommand: str, options: Namespace, path: str) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"--ckpt_path {path} does not exist")
        our_model = options["model"]["class_path"].startswith("app.models.")
        checkpoint = read_run(path, subcommand, our_model=our_model)
        merge_run(checkpoint, options["model"], path, self._given_model_keys(options))

    def _given_model_keys(self, options: Namespace) -> set[str]:
        return given_model_keys(self.parser, options, self.arguments)

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        if options["trainer"].get("barebones"):
            _switch_off_for_barebones(options["trainer"])
        if not options["trainer.logger"]:  # Lightning refuses the learning-rate monitor without one
            self.trainer_defaults["callbacks"] = [callback() for callback in ALWAYS]
        if self.subcommand == "fit":
            keep_csv_logs("metrics.csv")
            return
        keep_csv_logs(f"metrics_{self.subcommand}.csv")
        self.save_config_kwargs = {"config_filename": f"config_{self.subcommand}.yaml"}
        log_results_in_run(options)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (KeyError, RuntimeError) as error:
            if allocation_without_srun():
                raise ValueError(
                    "this is a SLURM allocation, but the command was not started by srun: use srun python train.py "
                    "..., or name the allocation interactive (salloc -J interactive)"
                ) from error
            raise
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # the user may have chosen another
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
        if config.get("enable_checkpointing") is False:  # Lightning would refuse our callbacks then
            callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
        trainer: pl.Trainer = super()._instantiate_trainer(config, callbacks)
        return trainer

    def _own_run_folder(self, stack: contextlib.ExitStack) -> None:
        """Keep the folder of a fit to this run, until the stack is closed, and check that it replaces no other run."""
        trainer = self.trainer
        if trainer.fast_dev_run or not is_first_process(trainer):  # type: ignore[attr-defined]
            return
        refuse_existing_run(trainer, self.config["fit"].get("ckpt_path"), may_begin_again=self.last_asked_for)
        stack.enter_context(owning(folders_to_own(trainer), NODE_FAILURE if restarted() else 0.0))

    def _run_subcommand(self, subcommand: str) -> None:
        if callable(signal.getsignal(signal.SIGINT)):  # until here, train.py handled it; under nohup it stays ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with contextlib.ExitStack() as stack, errors_of_threads(str(run_folder(self.config[subcommand]))):
                if subcommand == "fit":
                    self._own_run_folder(stack)
                stack.enter_context(errors_name_the_checkpoint(self.trainer))
                super()._run_subcommand(subcommand)
        except BaseException as error:
            end_child_processes(self.trainer)
            if interrupted_by_user(error):
                hint = ": --ckpt_path last resumes from the last save" if subcommand == "fit" else ""
                print(f"interrupted{hint}", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            if isinstance(error, SIGTERMException) and subcommand != "fit":
                print("stopped by SIGTERM", file=sys.stderr)
                sys.exit(128 + signal.SIGTERM)
            if isinstance(error, Exception):
                end_progress_bar(self.trainer)
            if isinstance(error, OSError) and error.errno in DISK_FULL and error.filename is None:
                # The system names no file when a disk is full, and the loggers of Lightning do not either.
                folder = run_folder(self.config[subcommand])
                raise OSError(f"a file in {folder} could not be written: {error.strerror}") from error
            raise

    def after_fit(self) -> None:
        log_dir = self.trainer.log_dir  # a broadcast: every process takes part
        if not self.trainer.loggers:
            log_dir = None  # Lightning names its root folder then
        if self.trainer.is_global_zero:
            print(fit_line(self.trainer, log_dir))

    def after_predict(self) -> None:
        writer = next(c for c in self.trainer.callbacks if isinstance(c, callbacks.PredictionWriter))
        print_predictions(self.trainer, writer)
        if writer.unreadable:
            sys.exit(UNREADABLE_IMAGES)


def _switch_off_for_barebones(trainer: Namespace) -> None:
    """Take back the settings of configurations and of this program that Lightning refuses with ``barebones``."""
    trainer["logger"] = False
    for key in ("enable_checkpointing", "enable_progress_bar", "enable_model_summary"):
        trainer[key] = False
    for key in ("log_every_n_steps", "num_sanity_val_steps"):
        trainer[key] = 0


def main(arguments: Sequence[str] | None = None, cli: type[CLI] = CLI) -> None:
    """Run a command line; an error is one line, with its traceback where ``APP_TRACEBACK`` is set.

    Args:
        arguments: the command line without the program; ``None``: that of this process.
        cli: the command line to run.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {brief(one_line(str(message)), LONGEST_LINE)}\n"
    ignore_unfounded_warnings()
    arguments = import_plugins(sys.argv[1:] if arguments is None else arguments)
    try:
        run(arguments, cli)
    except SIGTERMException:
        print("stopped by SIGTERM before the training began", file=sys.stderr)
        sys.exit(128 + signal.SIGTERM)
    except callbacks.StoppedBySignal as stop:
        rank_zero_info(f"stopped by {stop.signal.name}: --ckpt_path last resumes where it was saved")
        leave_process_group()
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if wants_traceback():
            raise
        fail(explain(error))


def run(arguments: Sequence[str], cli: type[CLI]) -> None:
    """Run a command line, and raise its errors."""
    cli(
        args=list(arguments),
        trainer_defaults={
            "logger": {
                "class_path": "TensorBoardLogger",
                "init_args": {"save_dir": "runs", "name": "run", "default_hp_metric": False},
            },
            "callbacks": [LearningRateMonitor(), *(callback() for callback in ALWAYS)],
        },
        save_config_callback=SavedConfig,
        seed_everything_default=0,
        parser_class=Parser,
        parser_kwargs={"description": DESCRIPTION, "formatter_class": HelpFormatter},
        auto_configure_optimizers=False,
    )
    leave_process_group()

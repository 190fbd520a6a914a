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
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from pytorch_lightning.utilities.exceptions import SIGTERMException

import app.classifier  # noqa: F401 - importing makes the classes known by their short names
import callbacks
import datamodules  # noqa: F401
from app.backbones import BACKBONES
from app.checkpoint_io import AtomicCheckpointIO
from app.checkpoints import read_checkpoint
from app.errors import (
    describe,
    errors_of_threads,
    fail,
    one_line,
    passed,
    print_newline_after_progress_bar,
    wants_traceback,
)
from app.processes import SameCheckpoint, leave_process_group

OPTIONS_OF = {"meta_layer": "meta_options", "decorrelation": "decorrelation_options"}
"""Arguments of the model whose options belong to them."""

ARCHITECTURE = {"backbone", "dim", "spectral_dtype", "downsampling", "stem", *OPTIONS_OF, *OPTIONS_OF.values()}
"""Arguments of the model that fine-tuning takes from a checkpoint."""

WEIGHTS = {"weights", "init_from"}
"""Arguments of the model that say where its weights come from."""

NEEDED = {"state_dict": dict, "hyper_parameters": dict, "pytorch-lightning_version": str}
"""What every checkpoint of this program holds."""

NEEDED_TO_GO_ON = {"loops": dict, "optimizer_states": list, "lr_schedulers": list}
"""What else ``fit`` needs."""

RESTORING = ("checkpoint_connector.py", ("restore", "_restore", "resume"))
"""Where Lightning takes a checkpoint apart: a file, and the beginnings of the names of functions."""

PATIENCE = 5.0
"""Seconds that the processes of a failed run have to end."""

UNREADABLE_IMAGES = 3
"""Exit status of a prediction that went through, but could not read some of the images."""


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
        options = self.config[self.config["subcommand"]]
        if self.config["subcommand"] == "fit":
            _stay_in_folder_of_job(options)
            if _restarted() and options.get("ckpt_path") != "last":
                options["ckpt_path"] = self._find("last", options) or options.get("ckpt_path")
        if options.get("ckpt_path") in ("last", "best"):
            options["ckpt_path"] = self._find(options["ckpt_path"], options)
        path = options.get("ckpt_path")
        if not path and self.config["subcommand"] == "predict":
            raise ValueError("predict needs a trained network: --ckpt_path best, last, or a file")
        if not path:
            _refuse_requeue_of_lightning(options)
            _take_architecture(options["model"])
            return
        if not Path(path).is_file():
            raise FileNotFoundError(f"--ckpt_path {path} does not exist")
        checkpoint = _read_checkpoint(path, fitting=self.config["subcommand"] == "fit")
        self._take_hyperparameters(checkpoint, options, path)

    def _find(self, which: str, options: Any) -> str | None:
        """The newest ``last`` or ``best`` checkpoint of this run: of the version that is given, else of all."""
        run, fitting, logger = _run_folder(options), self.config["subcommand"] == "fit", _logger_arguments(options)
        versions = f"{_version_folder(logger['version']) or 'version_*'}/" if logger else ""
        found = sorted(run.glob(f"{versions}checkpoints/{which}.ckpt"), key=lambda path: path.stat().st_mtime)
        if found:
            if fitting and which == "last" and versions:
                _logger_arguments(options)["version"] = _version(found[-1].parents[1])
                _warn_of_newer(run, found[-1])
            return str(found[-1])
        if not fitting:
            raise FileNotFoundError(f"--ckpt_path {which}: no checkpoint below {run}")
        rank_zero_info(f"no checkpoint below {run / versions} yet: starting from the beginning")
        return None

    def _take_hyperparameters(self, checkpoint: dict[str, Any], options: Any, path: str) -> None:
        """The checkpoint's hyper-parameters stand, but those given on the command line itself win."""
        stored = dict(checkpoint["hyper_parameters"])
        stored.pop("_instantiator", None)
        stored_class = stored.pop("_class_path")
        model = options["model"]
        if stored_class.rsplit(".", 1)[-1] != model["class_path"].rsplit(".", 1)[-1]:
            raise ValueError(
                f"--ckpt_path {path} holds a {stored_class}, the configuration asks for {model['class_path']}"
            )
        given = _given_model_keys(sys.argv[1:])
        for key in WEIGHTS:
            if key in given:
                rank_zero_info(f"model.{key} is not used: the weights are those of {path}")
        _settle(model["init_args"], stored, given)
        for key in WEIGHTS & set(model["init_args"].keys()):
            model["init_args"][key] = None

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        if not options["trainer.logger"]:  # Lightning refuses the learning-rate monitor without one
            self.trainer_defaults["callbacks"] = [SameCheckpoint()]
        self.save_config_kwargs = {"overwrite": True}  # a requeued job starts in the folder of its run
        if self.subcommand == "fit":
            return
        self.save_config_kwargs["config_filename"] = f"config_{self.subcommand}.yaml"
        # results of a checkpoint belong to its run
        folder = Path(options.get("ckpt_path") or "").resolve().parent
        logger = _logger_arguments(options)
        if logger and folder.name == "checkpoints" and folder.parents[1] == _run_folder(options).resolve():
            logger["version"] = _version(folder.parent)

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
            with errors_of_threads(str(_run_folder(options))):
                super()._run_subcommand(subcommand)
        except BaseException as error:
            _end_processes(self.trainer)
            if isinstance(error.__context__ if isinstance(error, SystemExit) else error, KeyboardInterrupt):
                goes_on = ": --ckpt_path last goes on after the last save" if subcommand == "fit" else ""
                print(f"interrupted{goes_on}", file=sys.stderr)
                sys.exit(128 + signal.SIGINT)
            if isinstance(error, SIGTERMException) and subcommand != "fit":
                print("stopped by SIGTERM", file=sys.stderr)
                sys.exit(128 + signal.SIGTERM)
            if isinstance(error, LookupError | TypeError | AttributeError) and passed(error, *RESTORING):
                raise _foreign(options["ckpt_path"], f"{type(error).__name__} {error} while it was restored") from error
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
                "callbacks": [LearningRateMonitor(), SameCheckpoint()],
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
        name = signal.Signals(stop.number).name
        rank_zero_info(f"stopped by {name}: --ckpt_path last goes on where the run was saved")
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
    """Let the processes that this one started say what is wrong, and end those that hang."""
    for process in getattr(trainer.strategy.launcher, "procs", ()):
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()


def _run_folder(options: Any) -> Path:
    """Where the logger puts the versions of this run (``runs/demo``), or Lightning its files where there is none."""
    arguments = _logger_arguments(options)
    if arguments is None:
        return Path(options["trainer"].get("default_root_dir") or ".")
    return Path(arguments["save_dir"], arguments["name"] or "")


def _stay_in_folder_of_job(options: Any) -> None:
    """A SLURM job that is requeued goes on in its folder, ``version_JOBID``, and looks for checkpoints only there.

    Raises:
        ValueError: for a second run of the job there, which would replace the first.
    """
    logger = _logger_arguments(options)
    job = SLURMEnvironment.job_id() if logger is not None and SLURMEnvironment.detect() else None
    if job is None or logger["version"] is not None:
        return
    logger["version"] = job
    folder = _run_folder(options) / _version_folder(job)
    if (folder / "checkpoints" / "last.ckpt").exists() and not options.get("ckpt_path") and not _restarted():
        raise ValueError(
            f"job {job} has a run in {folder} already: go on with it, --ckpt_path last, or give this one its own "
            "--trainer.logger.name or --trainer.logger.version"
        )


def _restarted() -> bool:
    """Whether SLURM started the same command again."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def _refuse_requeue_of_lightning(options: Any) -> None:
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


def _version(folder: Path) -> int | str:
    """The version that a logger keeps in a folder: a number, where the logger counted."""
    number = folder.name.removeprefix("version_")
    return int(number) if number.isdecimal() else folder.name


def _logger_arguments(options: Any) -> Any:
    """The arguments of the (first) logger, if it is one that keeps versions of runs in a folder."""
    logger = options["trainer.logger"]
    logger = logger[0] if isinstance(logger, list) and logger else logger
    arguments = getattr(logger, "init_args", None)
    return arguments if arguments is not None and "version" in arguments and "save_dir" in arguments else None


def _read_checkpoint(path: str, fitting: bool) -> dict[str, Any]:
    """A checkpoint that holds what Lightning and `_take_hyperparameters` take for granted.

    Raises:
        ValueError: for any other file.
    """
    try:
        checkpoint = read_checkpoint(path)
    except ValueError as error:
        raise ValueError(f"--ckpt_path {path} is no checkpoint that can be read: {error}") from error
    if not isinstance(checkpoint, dict):
        raise _foreign(path, f"it holds a {type(checkpoint).__name__}")
    for key, kind in {**NEEDED, **(NEEDED_TO_GO_ON if fitting else {})}.items():
        if key not in checkpoint:
            weights = f"; to start from its weights, --model.init_from {path}" if "state_dict" in checkpoint else ""
            raise _foreign(path, f"it holds no {key}{weights}")
        if not isinstance(checkpoint[key], kind):
            raise _foreign(path, f"{key} is a {type(checkpoint[key]).__name__}, not a {kind.__name__}")
    if not isinstance(checkpoint["hyper_parameters"].get("_class_path"), str):
        raise _foreign(path, "it names no model")
    return checkpoint


def _foreign(path: str, why: str) -> ValueError:
    return ValueError(f"--ckpt_path {path} is no checkpoint of this program: {why}")


def _warn_of_newer(run: Path, last: Path) -> None:
    """Name the newest run that was started after the last save of `last` and has saved nothing itself."""
    configs = [
        path for path in run.glob("version_*/config.yaml") if not (path.parent / "checkpoints/last.ckpt").exists()
    ]
    newest = max(configs, key=lambda path: path.stat().st_mtime, default=last)
    if newest.stat().st_mtime > last.stat().st_mtime:
        rank_zero_warn(f"{newest.parent} is newer, but has no last.ckpt: going on with {last}, of another run")


def _take_architecture(model: Any) -> None:
    """Fine-tune the network that a checkpoint of this program holds: its backbone and pooling, not its classifier."""
    path = model["init_args"].get("init_from")
    if not path:
        return
    try:
        checkpoint = read_checkpoint(path)
    except ValueError:
        return  # the model says what is wrong with the file
    stored = checkpoint.get("hyper_parameters") if isinstance(checkpoint, dict) else None
    if isinstance(stored, dict) and str(stored.get("backbone")) in BACKBONES:  # other programs have other names
        stored = {key: value for key, value in stored.items() if key in ARCHITECTURE}
        if stored.get("decorrelation") is None:  # a network that had none may be given one
            stored = {key: value for key, value in stored.items() if not key.startswith("decorrelation")}
        _settle(model["init_args"], stored, _given_model_keys(sys.argv[1:]))


def _settle(arguments: Any, stored: dict[str, Any], given: set[str]) -> None:
    """What the checkpoint stores stands, but for what is given on the command line itself; say what differs."""
    for layer, its_options in OPTIONS_OF.items():
        if layer in given and arguments.get(layer) != stored.get(layer):
            given = given | {its_options}
    for key, value in stored.items():
        here = arguments.get(key)
        here = here.as_dict() if hasattr(here, "as_dict") else here
        if here == value or key not in arguments:
            continue
        where, winner = ("on the command line",) * 2 if key in given else ("in the configuration", "in the checkpoint")
        rank_zero_info(f"model.{key}: {value} in the checkpoint, {here} {where}: what is {winner} wins")
        if key not in given:
            arguments[key] = value


def _given_files(arguments: list[str]) -> list[str]:
    """What stands behind ``--config`` on the command line."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return [
        value if name in ("-c", "--config") else name for name, value in pairs if name.startswith(("-c", "--config"))
    ]


def _given_model_keys(arguments: list[str]) -> set[str]:
    """The names of the model's arguments that stand on the command line itself.

    Raises:
        ValueError: for a whole model there (``--model FILE``, ``--model JSON``): what of it should win is not plain.
    """
    for name, value in zip(arguments, [*arguments[1:], ""], strict=True):
        whole = value if name == "--model" else name.removeprefix("--model=") if name.startswith("--model=") else "Name"
        if not whole.isidentifier():
            raise ValueError(
                "with --ckpt_path or init_from, give single values of the model (--model.KEY VALUE), not it as a whole"
            )
    pattern = re.compile(r"--model\.(?:init_args\.)?(\w+)")
    return {match[1] for argument in arguments if (match := pattern.match(argument))}


def _relative(path: str) -> str:
    return os.path.relpath(path)

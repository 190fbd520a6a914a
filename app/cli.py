"""The command line: LightningCLI with our defaults, our names, and errors of one line."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_info

import app.classifier  # noqa: F401 - importing makes the classes known by their short names
import callbacks
import datamodules  # noqa: F401

UNREADABLE_IMAGES = 3
"""Exit status of a prediction that went through, but could not read some of the images."""


class Parser(LightningArgumentParser):
    """Ends with one line instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if os.environ.get("APP_TRACEBACK") and ex is not None:
            raise ex
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
                "checkpoint.save_last": True,
            }
        )
        parser.add_lightning_class_args(callbacks.PredictionWriter, "predictions")

    def _parse_ckpt_path(self) -> None:
        """Find the last checkpoint, and settle the model between the checkpoint and the command line."""
        options = self.config[self.config["subcommand"]]
        if options.get("ckpt_path") == "last":
            self._find_last(options)
        path = options.get("ckpt_path")
        if not path or path in ("best", "hpc"):
            return
        if not Path(path).is_file():
            raise FileNotFoundError(f"--ckpt_path {path} does not exist")
        self._take_hyperparameters(_read_checkpoint(path), options, path)

    def _find_last(self, options: Any) -> None:
        run = _run_folder(options)
        found = sorted(run.glob("version_*/checkpoints/last*.ckpt"), key=lambda path: path.stat().st_mtime)
        if found:
            options["ckpt_path"] = str(found[-1])
        elif self.config["subcommand"] == "fit":
            rank_zero_info(f"no checkpoint below {run} yet: starting from the beginning")
            options["ckpt_path"] = None
        else:
            raise FileNotFoundError(f"--ckpt_path last: no checkpoint below {run}")
        if found and self.config["subcommand"] == "fit":
            options["trainer.logger.init_args.version"] = found[-1].parents[1].name

    def _take_hyperparameters(self, checkpoint: dict[str, Any], options: Any, path: str) -> None:
        """The checkpoint's hyper-parameters stand, but for those given on the command line, which win."""
        stored = dict(checkpoint.get("hyper_parameters", {}))
        stored.pop("_instantiator", None)
        stored_class = stored.pop("_class_path", None)
        if stored_class is None:
            raise ValueError(f"--ckpt_path {path} was not written by this program: it names no model")
        model = options["model"]
        if stored_class.rsplit(".", 1)[-1] != model["class_path"].rsplit(".", 1)[-1]:
            raise ValueError(f"--ckpt_path {path} holds a {stored_class}, the command asks for {model['class_path']}")
        given = _given_model_keys(sys.argv[1:])
        for key, value in stored.items():
            here = model["init_args"].get(key)
            here = here.as_dict() if hasattr(here, "as_dict") else here
            if here == value or key not in model["init_args"]:
                continue
            winner = "command line" if key in given else "checkpoint"
            rank_zero_info(f"model.{key}: {value} in the checkpoint, {here} in the command: the {winner} wins")
            if key not in given:
                model["init_args"][key] = value
        # weights are in the checkpoint
        if "weights" in model["init_args"]:
            model["init_args"]["weights"] = None

    def before_instantiate_classes(self) -> None:
        options = self.config[self.subcommand]
        self.save_config_kwargs = {"overwrite": True}  # a requeued job starts in the folder of its run
        if self.subcommand == "fit":
            return
        self.save_config_kwargs["config_filename"] = f"config_{self.subcommand}.yaml"
        # results of a checkpoint belong to its run
        path = Path(options.get("ckpt_path") or "")
        if path.parent.name == "checkpoints" and path.parents[2] == _run_folder(options):
            options["trainer.logger.init_args.version"] = path.parents[1].name

    def after_fit(self) -> None:
        """The last line: how good, and where."""
        if not self.trainer.is_global_zero or "val/top1" not in self.trainer.callback_metrics:
            return
        checkpoint = self.trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_score", None)
        parts = [f"validation top-1 {self.trainer.callback_metrics['val/top1']:.4f}"]
        if best is not None:
            parts[0] += f" (best {best:.4f})"
            parts += [f"checkpoint {_relative(checkpoint.best_model_path)}"]
        print("; ".join([*parts, f"log {_relative(self.trainer.log_dir or '')}"]))

    def after_predict(self) -> None:
        writer = next(c for c in self.trainer.callbacks if isinstance(c, callbacks.PredictionWriter))
        if self.trainer.is_global_zero:
            for file, error in writer.unreadable:
                print(f"unreadable, skipped: {file}: {error}", file=sys.stderr)
            print(f"{len(writer.rows)} images predicted, {len(writer.unreadable)} unreadable: {writer.output}")
        if writer.unreadable:
            sys.exit(UNREADABLE_IMAGES)


def main() -> None:
    """Run the command line; an error is one line, with its traceback where ``APP_TRACEBACK`` is set."""
    try:
        CLI(
            trainer_defaults={
                "logger": {
                    "class_path": "TensorBoardLogger",
                    "init_args": {"save_dir": "runs", "name": "run", "default_hp_metric": False},
                },
                "callbacks": [LearningRateMonitor()],
            },
            seed_everything_default=0,
            parser_class=Parser,
            auto_configure_optimizers=False,
        )
    except Exception as error:
        if os.environ.get("APP_TRACEBACK"):
            raise
        fail(f"{_where(error)}{error}" if str(error) else type(error).__name__)


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line to stderr and exit."""
    line = " ".join(message.split())
    print(f"error: {line} (APP_TRACEBACK=1 shows the traceback)", file=sys.stderr)
    sys.exit(status)


def _run_folder(options: Any) -> Path:
    """Where the logger puts the versions of this run: ``runs/demo``."""
    arguments = options["trainer.logger.init_args"]
    return Path(arguments["save_dir"], arguments["name"] or "")


def _read_checkpoint(path: str) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise ValueError(f"--ckpt_path {path} is no checkpoint that can be read ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"--ckpt_path {path} is no checkpoint: it holds no state_dict")
    return checkpoint


def _given_model_keys(arguments: list[str]) -> set[str]:
    """The names of the model's arguments that stand on the command line itself."""
    pattern = re.compile(r"--model\.(?:init_args\.)?(\w+)")
    return {match[1] for argument in arguments if (match := pattern.match(argument))}


def _relative(path: str) -> str:
    return os.path.relpath(path) if path else ""


def _where(error: Exception) -> str:
    """For errors that our code did not foresee: their kind, and the last line of ours they passed through."""
    if isinstance(error, ValueError | FileNotFoundError | FloatingPointError):
        return ""
    root = Path(__file__).parents[1]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(root)]
    ours = [f for f in frames if ".venv" not in f.filename and "site-packages" not in f.filename]
    place = f" at {Path(ours[-1].filename).relative_to(root)}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}: "

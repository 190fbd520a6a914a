"""The parser of ``train.py``: its help, and errors of one line that name the nearest flag or class."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import pytorch_lightning as pl
from jsonargparse import DefaultHelpFormatter
from pytorch_lightning.cli import LightningArgumentParser
from pytorch_lightning.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from app.console.errors import fail, one_line, wants_traceback
from app.console.suggestions import did_you_mean

DESCRIPTION = """\
Train image classifiers with global covariance pooling and decorrelated batch norm, and evaluate them.

  python train.py fit --config configs/demo.yaml
  python train.py test --config configs/demo.yaml --ckpt_path best
  python train.py predict --config configs/demo.yaml --ckpt_path best --data.predict_folder FOLDER

Any value of the configuration is a flag too: --model.meta_layer svd-pade, --trainer.max_epochs 20.
--import MODULE, which may be repeated, first imports a module of your own, so that the methods and classes that it
registers or defines are known by their short names."""

SUBCOMMANDS = {
    "fit": "Train a network, and validate it after every epoch.",
    "validate": "Evaluate a network on the validation images.",
    "test": "Evaluate a network on the test images.",
    "predict": "Classify the images of a folder, and write predictions.csv.",
}
"""Descriptions of the subcommands."""

BASES = (pl.LightningModule, pl.LightningDataModule, pl.Callback, Logger, Optimizer, LRScheduler)
"""Classes whose subclasses are known by their short names on the command line."""

OURS = ("app.", "callbacks.", "datamodules.")
"""Beginnings of the modules of this program."""


class HelpFormatter(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The formatter of jsonargparse, which keeps the lines of a description."""


class Parser(LightningArgumentParser):
    """A parser that ends with one line instead of the whole usage."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        # Lightning 2.6 describes a subcommand by the first line of a docstring, even if that ends mid-sentence.
        name = getattr(self, "subcommand", None)
        if name in SUBCOMMANDS:
            for group in self._action_groups:
                if group.title == self.description:
                    group.title = SUBCOMMANDS[name].rstrip(".")
            self.description = SUBCOMMANDS[name]
        if self._subcommands_action is not None:
            for entry in self._subcommands_action._choices_actions:
                entry.help = SUBCOMMANDS[entry.dest]
        return super().format_help(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if wants_traceback() and ex is not None:
            raise ex
        # An error in a configuration file is raised by the main parser, and carries the parser of the subcommand.
        parser = getattr(ex, "subcommand_parser", self)
        # The parsers of the classes have no command line of their own.
        fail(explain(message, getattr(self, "args", []), list(parser._option_string_actions)), status=2)


def config_files(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into the configuration files that it names and the rest."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-c", "--config", action="append", default=[])
    given, rest = parser.parse_known_args(arguments)
    return given.config, rest


def explain(message: str, arguments: Sequence[str], flags: Sequence[str]) -> str:
    """Return a message of jsonargparse as one line that says what to do.

    Messages that no rule matches are returned unchanged, in one line.

    Args:
        message: the message.
        arguments: the command line.
        flags: the flags that the parser knows.
    """
    text = one_line(message)
    if match := re.search(r"required: \w+\.model\b", text):
        return f"{match[0]}: give a configuration, --config configs/demo.yaml"
    if text.startswith("Problems parsing config"):
        # The message has the line and the column, but not the file.
        return f"{' '.join(config_files(arguments)[0])} is not valid YAML: {text}"
    if match := re.search(r"Expected a dot import path string: (\S+)", text):
        hint = did_you_mean(match[1], known_classes())
        return f"unknown class {match[1]!r}: {hint or 'give the name of a class or its import path'}"
    if match := re.match(r"unrecognized arguments: --([\w.-]+)", text):
        return _with_hint(text, match[1], [flag.removeprefix("--") for flag in flags])
    if match := re.search(r"does not accept option '([\w.-]+)'", text):
        return _with_hint(text, match[1], [flag.removeprefix("--") for flag in flags])
    if match := re.match(r"Option '([\w-]+)' is not accepted", text):
        # The message does not name the class; it is one of this program more often than not.
        if did_you_mean(match[1], known_parameters(OURS)):
            return _with_hint(text, match[1], known_parameters(OURS))
        return _with_hint(text, match[1], known_parameters())
    return _type_error(text, arguments)


def _with_hint(text: str, name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known)
    return f"{text}: {hint}" if hint else text


def _type_error(text: str, arguments: Sequence[str]) -> str:
    """Return an error of a value's type without the inner names of jsonargparse.

    Its list of alternatives, ``Expected a <class 'int'> - Expected a <class 'NoneType'>``, becomes ``expected int``.
    """
    if match := re.match(r'Parser key "([^"]+)": ?', text):
        key = match[1]
        # The dashes make clear that it is a flag and not a key of the file.
        if f"--{key}" in [argument.partition("=")[0] for argument in arguments]:
            key = f"--{key}"
        text = f"{key}: {text[match.end() :].removeprefix('- ')}"
    union = re.search(r"Does not validate against any of the Union subtypes.*", text)
    if union is None:
        return text
    expected = [name for name in re.findall(r"Expected a <class '([\w.]+)'>", union[0]) if name != "NoneType"]
    given = re.search(r"Given value: (?!Namespace|NestedArg)(.*)", union[0])
    if not expected or given is None:
        return text
    return f"{text[: union.start()]}expected {' or '.join(expected)}, got {given[1]}"


def known_classes() -> list[str]:
    """Return the short names that the command line knows."""
    return [kind.__name__ for kind in _subclasses(BASES)]


def known_parameters(modules: tuple[str, ...] = ("",)) -> list[str]:
    """Return the names of the arguments of the classes that the command line knows.

    Args:
        modules: beginnings of the names of the modules to take classes from.
    """
    names: list[str] = []
    for kind in _subclasses(BASES):
        if kind.__module__.startswith(modules):
            names += inspect.signature(kind).parameters
    return names


def _subclasses(bases: Sequence[type]) -> Iterator[type]:
    for base in bases:
        for kind in base.__subclasses__():
            yield kind
            yield from _subclasses([kind])

"""The option ``--import MODULE``: imports a user's modules, whose classes and methods the commands then know."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from app.console.arguments import OneLineParser
from app.console.errors import fail, wants_traceback


def import_plugins(arguments: Sequence[str]) -> list[str]:
    """Import the modules that ``--import`` names, in their order, and return the other arguments.

    A module is found in the current folder too: a program that is started by its file, as ``train.py`` is, does not
    search there by itself.

    Args:
        arguments: the command line without the program; ``--import MODULE`` may stand anywhere, any number of times.
    """
    parser = OneLineParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE")
    given, rest = parser.parse_known_args(arguments)
    search_current_folder()
    for module in given.modules:
        _import(module)
    return rest


def search_current_folder() -> None:
    """Let Python find modules in the current folder, after all others so that none of ours is hidden by them."""
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a user's module raises
        if wants_traceback():
            raise
        fail(f"--import {module} failed: {type(error).__name__}: {error}")

"""Command-line arguments of the tools: one-line errors, and checked numbers."""

from __future__ import annotations

import argparse
from typing import NoReturn

from app.console.errors import fail


class OneLineParser(argparse.ArgumentParser):
    """An argument parser of the standard library whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (--help lists the options)", status=2)


def positive(text: str) -> int:
    """A positive whole number on the command line.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)

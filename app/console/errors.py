"""Errors in one line: what is wrong, and what to do about it."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from typing import NoReturn

SELF_EXPLANATORY = (ValueError, OSError, FloatingPointError)
"""Kinds of errors whose message says everything; of other kinds the name and the place are printed too."""

LIBRARIES = (sysconfig.get_path("stdlib"), "site-packages", "<frozen")
"""Parts of the file names of code that is not the user's and not this program's."""


def wants_traceback() -> bool:
    """Return whether the user asked for tracebacks, by the environment variable ``APP_TRACEBACK``."""
    return bool(os.environ.get("APP_TRACEBACK"))


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line to stderr and exit."""
    print(f"error: {one_line(message)} [APP_TRACEBACK=1 shows more]", file=sys.stderr)
    sys.exit(status)


def one_line(text: str) -> str:
    """Fold a text into one line."""
    return " ".join(text.split())


def describe(error: Exception, self_explanatory: tuple[type[Exception], ...] = SELF_EXPLANATORY) -> str:
    """Return the message of an error; for an unforeseen one also its kind and the last line outside of libraries."""
    message = str(error) or type(error).__name__
    if isinstance(error, self_explanatory):
        return message
    return f"{type(error).__name__}{_place(error)}: {message}"


def _place(error: Exception) -> str:
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not any(part in frame.filename for part in LIBRARIES):
            return f" at {os.path.relpath(frame.filename)}:{frame.lineno}"
    return ""

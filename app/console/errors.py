"""One-line errors: what is wrong, and what to do about it."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from app.console.text import printable, shortened

SELF_EXPLANATORY = (ValueError, OSError, FloatingPointError)
"""Kinds of errors whose message says everything; of other kinds the name and the place are printed too."""

INTERRUPTED = 130
"""Exit status after Ctrl+C: 128 and the number of the signal."""

LONGEST_LINE = 2000
"""Characters of a printed line: names and values of a file may have any length."""

LIBRARIES = (sysconfig.get_path("stdlib"), "site-packages", "<frozen")
"""Parts of the file names of code that is not the user's and not this program's."""


def wants_traceback() -> bool:
    """Return whether the user asked for tracebacks, by the environment variable ``APP_TRACEBACK``."""
    return bool(os.environ.get("APP_TRACEBACK"))


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line to stderr and exit."""
    note(f"error: {shortened(one_line(message), LONGEST_LINE)} [APP_TRACEBACK=1 shows more]")
    sys.exit(status)


def note(message: str) -> None:
    """Print one line to stderr, without control characters."""
    print(printable(one_line(message)), file=sys.stderr)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End the program with one line in place of a traceback, whatever went wrong, and with another one at Ctrl+C."""
    try:
        yield
        # Output that is still in the buffer meets a full disk or a closed pipe here, and not after the last line.
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _drop_output()
        sys.exit(1)
    except Exception as error:
        if wants_traceback():
            raise
        message = describe(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
            # Files are named by who writes them; `print` names nothing.
            _drop_output()
            message = f"standard output cannot be written: {error.strerror}"
        fail(message)
    except KeyboardInterrupt:
        if wants_traceback():
            raise
        note("interrupted")
        sys.exit(INTERRUPTED)


def _drop_output() -> None:
    """Point stdout to nowhere, because Python flushes it once more at its end."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, sys.stdout.fileno())


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

"""Errors in threads, which end the program as if they were its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.console.errors import wants_traceback


@contextmanager
def errors_of_threads(log_folder: str) -> Iterator[None]:
    """Raise an `OSError` that ended a thread here too, in place of the traceback of the thread.

    TensorBoard writes its events in a thread, and reports that the thread has ended only with the next event, if there
    is one.

    Args:
        log_folder: where it writes; the system names no file when the disk is full.
    """
    errors: list[OSError] = []
    default_hook = threading.excepthook

    def keep(arguments: threading.ExceptHookArgs) -> None:
        is_system_error = isinstance(arguments.exc_value, OSError)
        if is_system_error:
            errors.append(arguments.exc_value)  # type: ignore[arg-type]
        if not is_system_error or wants_traceback():
            default_hook(arguments)

    threading.excepthook = keep
    try:
        yield
        if errors:
            raise errors[0]
    except OSError as error:
        if error not in errors:
            raise
        # The error came up while another one was handled: that one was first, and is the cause.
        if isinstance(error.__context__, OSError | FloatingPointError):
            raise error.__context__ from None
        raise OSError(_message(log_folder, error)) from error
    except SystemExit:
        # A signal ended the run, and its exit status stands.
        if errors:
            print(f"error: {_message(log_folder, errors[0])}", file=sys.stderr)
        raise
    finally:
        threading.excepthook = default_hook


def _message(folder: str, error: OSError) -> str:
    return f"the log in {folder} could not be written: {error.strerror}"

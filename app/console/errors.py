"""Errors in one line: what is wrong, and what to do about it."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

FORESEEN = (ValueError, OSError, FloatingPointError)
"""Errors whose message says all; of others the kind and the place are told too."""

OUTSIDE = {
    r"DataLoader worker .* (is killed by signal|exited unexpectedly)": "a loader process was killed: where memory ran "
    "out, lower data.num_workers or data.batch_size",
    r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out|[Tt]imeout": "another process of the run died or "
    "hangs; its own message, if it had one, is among these lines",
}
"""What errors that come from outside mean, by their text."""


def wants_traceback() -> bool:
    """Whether the user asked for tracebacks, by the environment variable ``APP_TRACEBACK``."""
    return bool(os.environ.get("APP_TRACEBACK"))


def fail(message: str, status: int = 1) -> NoReturn:
    """Print one line to stderr and exit."""
    print(f"error: {one_line(message)} [APP_TRACEBACK=1 shows more]", file=sys.stderr)
    sys.exit(status)


def print_newline_after_progress_bar(error: Exception) -> None:
    """End the line of an unfinished progress bar, if the error came out of Lightning's loops."""
    if passed(error, "/loops/"):
        print(flush=True)


def follows(error: BaseException | None, kind: type[BaseException]) -> bool:
    """Whether an error is of this kind, or came up while one was dealt with."""
    while error is not None and not isinstance(error, kind):
        error = error.__context__
    return error is not None


def passed(error: BaseException, file: str, functions: tuple[str, ...] = ("",)) -> bool:
    """Whether an error came through a file with this part of a path, in a function with one of these beginnings."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(file in frame.filename and frame.name.startswith(functions) for frame in frames)


@contextmanager
def errors_of_threads(log_folder: str) -> Iterator[None]:
    """An `OSError` that ends a thread also ends what runs here, in place of the thread's traceback.

    TensorBoard writes its events in a thread, and tells of its end with the next event, if there is one.

    Args:
        log_folder: where it writes; the system names no file when the disk is full.
    """
    errors: list[OSError] = []
    before = threading.excepthook

    def note(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, OSError):
            errors.append(arguments.exc_value)
        if not isinstance(arguments.exc_value, OSError) or wants_traceback():
            before(arguments)

    threading.excepthook = note
    try:
        yield
        if errors:
            raise errors[0]
    except OSError as error:
        if error in errors and isinstance(error.__context__, OSError | FloatingPointError):  # which was first
            raise error.__context__ from None
        if error in errors:
            raise OSError(_of_log(log_folder, error)) from error
        raise
    except SystemExit:  # a signal ended the run: that stands
        if errors:
            print(f"error: {_of_log(log_folder, errors[0])}", file=sys.stderr)
        raise
    finally:
        threading.excepthook = before


def _of_log(folder: str, error: OSError) -> str:
    return f"the log in {folder} could not be written: {error.strerror}"


def describe(error: Exception) -> str:
    """The message of an error; for an unforeseen one also its kind and the last line of ours that it passed."""
    message = str(error) or type(error).__name__
    if "loading state_dict" in message:  # the user's mix of files, not an error of the program
        return message
    for text, meaning in OUTSIDE.items():
        if isinstance(error, RuntimeError) and re.search(text, message):
            return f"{meaning} ({message if wants_traceback() else _first_sentence(message)})"
    if isinstance(error, FORESEEN) or type(error).__module__.startswith(("pytorch_lightning", "lightning")):
        return message
    root = Path(__file__).parents[2]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(root)]
    ours = [f for f in frames if "site-packages" not in f.filename]
    place = f" at {Path(ours[-1].filename).relative_to(root)}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}: {message}"


def one_line(message: str) -> str:
    """Fold a message into one line, and take the parser's bookkeeping out of it."""
    text = " ".join(message.split())
    if match := re.search(r"required: \w+\.model", text):
        return f"{match[0]}: give a configuration, --config configs/demo.yaml"
    if match := re.search(r"Expected a dot import path string: (\S+)", text):
        return f"unknown class {match[1]!r}: the README names our classes; optimizers and schedules are torch's"
    if "loading state_dict" in text:
        return _misfit(text)
    if match := re.search(r"more than one stateful callback of type `(\w+)`", text):
        return f"{match[1]} is in trainer.callbacks twice: give it once"
    text = re.sub(r" - Not a valid subclass of .*", "", text)
    text = re.sub(r"Given value: (Namespace|NestedArg)\(.*", "", text)
    text = re.sub(r"Given value type: <class '[^']*'>", "", text)
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: \[.*?\] Errors:", "", text)
    text = re.sub(r"- Expected a <class 'NoneType'>", "", text)
    text = re.sub(r"- Expected a <class '(\w+)'>", r"expected \1,", text)
    text = re.sub(r"Given value:", "got", text)
    text = re.sub(r'Parser key "([^"]+)": ?', r"\1: ", text)
    return re.sub(r"(^|: )- ", r"\1", " ".join(text.split()))


def _first_sentence(text: str) -> str:
    """Without the place in a library's source that it may begin with."""
    return re.split(r"\.\s|\n", re.sub(r"^\[\S+:\d+\]\s*", "", text))[0]


def _misfit(text: str) -> str:
    """Torch lists every tensor that does not fit: name the first, and count the others."""
    shapes = re.findall(r"size mismatch for (\S+):.*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)", text)
    names = re.findall(r'"([\w.]+)"', text.partition("size mismatch")[0])
    if shapes:
        name, stored, here = shapes[0]
        what = f"{name} is {stored} there and {here} here"
    else:
        what = f"{names[0] if names else 'a tensor'} is missing or unknown"
    others = len(shapes) + len(names) - 1
    more = f", and {others} more tensors differ" if others > 0 else ""
    return f"the checkpoint does not fit the configured model: {what}{more}"

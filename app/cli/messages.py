"""Messages of torch and Lightning that users of ``train.py`` meet, rewritten to say what to do."""

from __future__ import annotations

import re

from lightning_fabric.utilities.exceptions import MisconfigurationException

from app.console.errors import SELF_EXPLANATORY, describe, wants_traceback

LOADER_KILLED = "a loader process was killed: if memory ran out, lower data.num_workers or data.batch_size"

MEANINGS = {
    # Of torch and our data modules. It stands before the next one, which a bus error matches too.
    r"shared memory|</torch_\d+_\d+": "shared memory (/dev/shm) is full or missing, by which loader "
    "processes hand over their images: give a container more of it (docker run --shm-size 8g), or load without "
    "processes: --data.num_workers 0",
    # Of torch's loader; mostly the system killed the process because memory ran out.
    r"DataLoader worker .* (is killed by signal|exited unexpectedly)": LOADER_KILLED,
    # Of gloo and NCCL, on every process that is left when one has died.
    r"Connection (closed|reset) by peer|Broken pipe|[Tt]imed out|[Tt]imeout": "another process of the run died or "
    "hangs; its own message, if any, is among these lines",
    # Of Lightning, for models whose learning rate is an option of an object.
    r"When using the learning rate finder": "LearningRateFinder cannot set the learning rate of this model, which is "
    "an option of its optimizer: try --model.optimizer.lr by hand",
    # Of Lightning, where the command line adds a callback that the configuration has already.
    r"more than one stateful callback of type": "a callback is in trainer.callbacks twice: give it once",
}
"""Meanings of errors of torch and Lightning, by a pattern of their text."""

SHAPES = re.compile(r"size mismatch for (\S+):.*?torch\.Size\((\[.*?\])\).*?torch\.Size\((\[.*?\])\)")
"""Torch's message about a tensor with a shape mismatch: its name, its shape in the file and its shape here."""


def explain(error: Exception) -> str:
    """Return what to print for an error that ended a run."""
    error = _constructor_error(error)
    message = str(error)
    if isinstance(error, RuntimeError | AttributeError):
        if "loading state_dict" in message:
            return _shape_mismatch(message)
        for pattern, meaning in MEANINGS.items():
            if re.search(pattern, message):
                return f"{meaning} ({message if wants_traceback() else _first_sentence(message)})"
    # A process that is killed while it hands over a batch resets the connection that the batch comes through, before
    # torch can notice its end. Connections between the processes of a run raise RuntimeErrors.
    if isinstance(error, ConnectionResetError):
        return f"{LOADER_KILLED} ({message})"
    return describe(error, (*SELF_EXPLANATORY, MisconfigurationException))


def _constructor_error(error: Exception) -> Exception:
    """Return the error that a constructor raised, unwrapped from the one that jsonargparse 4.53 raises.

    As a model may also be null for jsonargparse, its message is a list of alternatives with the whole configuration.
    """
    while str(error).startswith("Does not validate against any of the Union"):
        if not isinstance(error.__cause__, Exception):
            break
        error = error.__cause__
    return error


def _first_sentence(text: str) -> str:
    """Return the beginning of a message, without the place in the library's source that gloo puts before it."""
    return re.split(r"\.\s|\n", re.sub(r"^\[\S+:\d+\]\s*", "", text))[0]


def _shape_mismatch(text: str) -> str:
    """Name the first tensor of a checkpoint that does not fit, and count the others: torch lists every one."""
    shapes = SHAPES.findall(" ".join(text.split()))
    names = re.findall(r'"([\w.]+)"', text.partition("size mismatch")[0])
    if shapes:
        name, stored, here = shapes[0]
        difference = f"{name} is {stored} there and {here} here"
    else:
        name = names[0] if names else "a tensor"
        difference = f"{name} is missing or unknown"
    others = len(shapes) + len(names) - 1
    if others > 0:
        difference += f", and {others} more tensors differ"
    return f"the checkpoint does not fit the configured model: {difference}"

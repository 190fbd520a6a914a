"""Reads the scalars of one TensorBoard event file, and reports what could not be read.

Shapes: S logged steps.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event

from app.report.event_records import read_records

Array = NDArray[np.float64]

PATTERN = "events.out.tfevents.[0-9]*"
"""Names of the files that TensorBoard writes."""

STEPS = range(2**53)
"""Steps that a double represents exactly; larger ones are damage."""


@dataclass(frozen=True)
class Curve:
    """A scalar over the training: steps ``(S,)``, increasing, and values ``(S,)``."""

    steps: Array
    values: Array


@dataclass(frozen=True)
class EventFile:
    """The contents of an event file.

    Attributes:
        curves: the scalars by tag.
        problem: description of what could not be read, in one sentence; ``None`` if everything could.
    """

    curves: dict[str, Curve]
    problem: str | None = None


def read_event_file(path: Path) -> EventFile:
    """All scalars of an event file, as far as they can be read; no error of the file is raised."""
    if not os.path.isfile(path):  # noqa: PTH113, a pipe would block, and `Path.is_file` raises where it may not look
        return EventFile({}, f"{path} is not a file that can be read, and is left out")
    try:
        with path.open("rb") as file:
            return _read(path, file)
    except OSError as error:
        return EventFile({}, f"{path} could not be read ({error.strerror or error}), and is left out")


def _read(path: Path, file: BinaryIO) -> EventFile:
    values: dict[str, dict[int, float]] = {}
    places = 0
    first: int | None = None
    last: int | None = None
    is_empty = True
    for event in _events(file):
        if event is None:
            if not places:
                first = last
            places += 1
            continue
        is_empty = False
        for value in event.summary.value:
            if value.HasField("simple_value"):
                # A step may be logged twice, such as the last one before an interruption: the later value counts.
                values.setdefault(value.tag, {})[event.step] = value.simple_value
                last = event.step
    problem = None
    if places and is_empty:
        problem = f"{path} could not be read: it is damaged from its beginning, or is not an event file of TensorBoard"
    elif places:
        problem = f"{path} is damaged {_where(places, first, last)}; what was logged there is missing"
    return EventFile({tag: _curve(one) for tag, one in values.items()}, problem)


def _events(file: BinaryIO) -> Iterator[Event | None]:
    """The events of a file, and ``None`` for each damaged place."""
    for record in read_records(file):
        event = None
        if record is not None:
            try:
                event = Event.FromString(record)
            except DecodeError:  # the checksum is right, and the data are not
                event = None
        if event is not None and event.step not in STEPS:
            event = None
        yield event


def _curve(values: dict[int, float]) -> Curve:
    steps = sorted(values)
    return Curve(np.array(steps, float), np.array([values[step] for step in steps], float))


def _where(places: int, first: int | None, last: int | None) -> str:
    """The places of the damage, by the last step before the first of them; and the last step of all that was read."""
    if last is None:
        return "and holds no scalar besides"
    where = "before its first step" if first is None else f"after step {first}"
    if places > 1:
        where = f"in {places} places, first {where}"
    return f"{where}, and was read up to step {last}"

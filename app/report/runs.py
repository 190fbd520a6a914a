"""Reads finished, killed and resumed runs: the scalars of their event files, and their configuration.

Shapes: S logged steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

Array = NDArray[np.float64]

EVENTS = "events.out.tfevents.[0-9]*"

NOT_TRAINING = ("test/", "hp_metric", "epoch")
"""Tags that do not say whether a file was written by `fit`."""


@dataclass(frozen=True)
class Curve:
    """A scalar over the training: steps ``(S,)``, increasing, and values ``(S,)``."""

    steps: Array
    values: Array


@dataclass(frozen=True)
class Run:
    """One version folder.

    Attributes:
        folder: its path.
        config: the contents of ``config.yaml``; empty if there is none.
        curves: the scalars by tag.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[str, Curve]

    @property
    def seed(self) -> str:
        """``seed_everything``, as text."""
        return str(self.config.get("seed_everything", ""))

    @property
    def last_step(self) -> float:
        """The last step that anything was logged for in training."""
        ends = [curve.steps[-1] for tag, curve in self.curves.items() if not tag.startswith(NOT_TRAINING)]
        return max(ends, default=0.0)

    def epochs(self, steps: Array) -> Array | None:
        """Epochs that had passed at each step ``(S,)``; ``None`` if no epoch was finished.

        The number is interpolated between the ends of two epochs, and extrapolated after the last.
        """
        if not {"epoch", "train/top1"} <= self.curves.keys():
            return None
        # The mean of an epoch is logged at its last step.
        ends = self.curves["train/top1"].steps
        epoch = self.curves["epoch"]
        ends = ends[np.isin(ends, epoch.steps)]
        if not len(ends):
            return None
        # Steps are counted from 0, so that no epoch has passed at step -1.
        x = np.append(-1, ends)
        y = np.append(0, epoch.values[np.searchsorted(epoch.steps, ends)] + 1)
        slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
        return np.interp(steps, x, y) + slope * np.maximum(steps - x[-1], 0)


def read_runs(folder: Path) -> tuple[list[Run], list[Path]]:
    """All runs in a version folder or below its parents, and the folders whose event files hold no scalar.

    Raises:
        FileNotFoundError: for a folder that does not exist.
        ValueError: for one without event files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder of a run, such as runs/demo/version_0")
    versions = sorted({file.parent for file in folder.rglob(EVENTS)}, key=_natural)
    if not versions:
        raise ValueError(f"{folder} holds no event files of TensorBoard: give a folder such as runs/demo/version_0")
    runs, empty = [], []
    for version in versions:
        run = read_run(version)
        if run.curves:
            runs.append(run)
        else:
            empty.append(version)
    return runs, empty


def read_run(folder: Path) -> Run:
    """The run of one version folder.

    Raises:
        ValueError: for a ``config.yaml`` that is not valid YAML.
    """
    files = sorted(folder.glob(EVENTS), key=_started)
    return Run(folder, _read_config(folder / "config.yaml"), merge(read_events(file) for file in files))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    return config if isinstance(config, dict) else {}


def read_events(file: Path) -> dict[str, Curve]:
    """All scalars of one event file, as far as it can be read: a killed run may end within a record."""
    # Nothing is discarded here: `merge` decides which values of an earlier file a resumed run replaces.
    events = EventAccumulator(str(file), size_guidance={SCALARS: 0}, purge_orphaned_data=False).Reload()
    curves = {}
    for tag in events.Tags()[SCALARS]:
        # A step may be logged twice, such as the last one before an interruption: the later value counts.
        last = {event.step: event.value for event in events.Scalars(tag)}
        steps, values = zip(*sorted(last.items()), strict=True)
        curves[tag] = Curve(np.array(steps, float), np.array(values, float))
    return curves


def merge(files: Iterable[dict[str, Curve]]) -> dict[str, Curve]:
    """Merge the curves of a run's event files, given in the order in which the files were begun.

    A run that was killed after its last checkpoint repeats steps when it is resumed: from the first step of a tag in
    the later file on, the later file counts. ``test`` and ``validate`` write files of their own: the test of the last
    file counts, and a validation outside of the training is left out.
    """
    merged: dict[str, Curve] = {}
    for curves in files:
        fitted = any(not tag.startswith((*NOT_TRAINING, "val/")) for tag in curves)
        for tag, curve in curves.items():
            if tag in merged and fitted and not tag.startswith("test/"):
                merged[tag] = _continued(merged[tag], curve)
            elif fitted or tag.startswith("test/"):
                merged[tag] = curve
    return merged


def _continued(earlier: Curve, later: Curve) -> Curve:
    kept = earlier.steps < later.steps[0]
    steps = np.concatenate([earlier.steps[kept], later.steps])
    values = np.concatenate([earlier.values[kept], later.values])
    return Curve(steps, values)


def _started(file: Path) -> tuple[int, ...]:
    """Key for the order in which event files were begun: ``events.out.tfevents.SECONDS.HOST.PID.COUNT``."""
    # The name of the host may hold digits too: only the first and the last number have a fixed place.
    numbers = re.findall(r"\d+", file.name)
    return int(numbers[0]), int(numbers[-1])


def _natural(folder: Path) -> list[tuple[str, int]]:
    """Key for the order that puts ``version_2`` before ``version_10``."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", f"/{folder}")]

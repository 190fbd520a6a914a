"""Reads finished, killed and resumed runs: the scalars of their event files, and their configuration.

Shapes: S logged steps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from app.report.config_file import read_config
from app.report.event_files import PATTERN, Array, Curve, read_event_file

NOT_TRAINING = ("test/", "hp_metric", "epoch")
"""Tags that do not say whether a file was written by `fit`."""


@dataclass(frozen=True)
class Run:
    """One version folder.

    Attributes:
        folder: its path.
        config: the contents of ``config.yaml``; empty if there is none.
        curves: the scalars by tag.
        problems: descriptions of what could not be read of it, one sentence each.
    """

    folder: Path
    config: dict[str, Any]
    curves: dict[str, Curve]
    problems: list[str] = field(default_factory=list)

    @property
    def seed(self) -> str:
        """``seed_everything``, as text."""
        return str(self.config.get("seed_everything", ""))

    @property
    def last_step(self) -> float:
        """The last training step for which anything was logged."""
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


@dataclass(frozen=True)
class Found:
    """The runs that were found in a folder, and the problems.

    Attributes:
        runs: the runs that logged a scalar.
        empty: the folders whose event files hold no scalar.
        problems: descriptions of what could not be read, one sentence each.
    """

    runs: list[Run]
    empty: list[Path]
    problems: list[str]


def read_runs(folder: Path) -> Found:
    """All runs in a version folder or below its parents.

    Raises:
        FileNotFoundError: for a folder that does not exist.
        ValueError: for one without event files.
    """
    if not os.path.isdir(folder):  # noqa: PTH112, `Path.is_dir` raises where it may not look
        raise FileNotFoundError(f"{folder} is not a folder: give the folder of a run, such as runs/demo/version_0")
    versions, problems = _find_versions(folder)
    if not versions:
        reason = "; ".join([f"{folder} holds no event files of TensorBoard", *problems])
        raise ValueError(f"{reason}: give a folder such as runs/demo/version_0")
    runs, empty = [], []
    for version in versions:
        run = read_run(version)
        problems += run.problems
        if run.curves:
            runs.append(run)
        elif not run.problems:
            empty.append(version)
    return Found(runs, empty, problems)


def _find_versions(folder: Path) -> tuple[list[Path], list[str]]:
    """The folders that hold event files, and the folders that may not be read; links to folders are not followed."""
    versions: list[Path] = []
    problems: list[str] = []

    def report(error: OSError) -> None:
        problems.append(f"{error.filename} could not be read ({error.strerror}), and is left out")

    for parent, folders, files in os.walk(folder, onerror=report):
        if any(fnmatch(name, PATTERN) for name in (*folders, *files)):
            versions.append(Path(parent))
    return sorted(versions, key=_natural), problems


def read_run(folder: Path) -> Run:
    """The run of one version folder.

    Raises:
        ValueError: for a ``config.yaml`` that is not valid YAML.
    """
    config, problem = read_config(folder / "config.yaml")
    problems = [problem] if problem else []
    files = []
    for path in sorted(folder.glob(PATTERN), key=_started):
        file = read_event_file(path)
        files.append(file.curves)
        if file.problem:
            problems.append(file.problem)
    return Run(folder, config, merge(files), problems)


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

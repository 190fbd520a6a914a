"""Reads finished, killed and resumed runs: the scalars of their event files and their configuration.

Shapes: S logged steps.
"""

from __future__ import annotations

import re
import sys
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
        folder: where it lies.
        config: what ``config.yaml`` says; empty if there is none.
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
        return max((c.steps[-1] for tag, c in self.curves.items() if not tag.startswith(NOT_TRAINING)), default=0.0)

    def epochs(self, steps: Array) -> Array | None:
        """Epochs that had passed at each step ``(S,)``, by the ends of epochs; ``None`` if no epoch was finished."""
        if not {"epoch", "train/top1"} <= self.curves.keys():
            return None
        ends = self.curves["train/top1"].steps  # the tag of an epoch's mean is written at its last step
        epoch = self.curves["epoch"]
        ends = ends[np.isin(ends, epoch.steps)]
        if not len(ends):
            return None
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
        raise FileNotFoundError(f"{folder} is no folder: give the folder of a run, such as runs/demo/version_0")
    versions = sorted({file.parent for file in folder.rglob(EVENTS)}, key=_natural)
    if not versions:
        raise ValueError(f"{folder} holds no event files of TensorBoard: give a folder such as runs/demo/version_0")
    runs = [read_run(version) for version in versions]
    empty = [run.folder for run in runs if not run.curves]
    return [run for run in runs if run.curves], empty


def read_run(folder: Path) -> Run:
    """The run of one version folder.

    Raises:
        ValueError: for a ``config.yaml`` that is no YAML.
    """
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from error
    config = config if isinstance(config, dict) else {}
    files = sorted(folder.glob(EVENTS), key=_started)
    return Run(folder, config, merge(read_events(file) for file in files))


def read_events(file: Path) -> dict[str, Curve]:
    """All scalars of one event file, as far as it can be read: a killed run may end within a record."""
    # one file at a time, and nothing discarded: what is overwritten by a resumed run is decided in `merge`
    events = EventAccumulator(str(file), size_guidance={SCALARS: 0}, purge_orphaned_data=False).Reload()
    curves = {}
    for tag in events.Tags()[SCALARS]:
        last = {event.step: event.value for event in events.Scalars(tag)}
        steps = sorted(last)
        curves[tag] = Curve(np.array(steps, float), np.array([last[step] for step in steps], float))
    return curves


def merge(files: Iterable[dict[str, Curve]]) -> dict[str, Curve]:
    """Put the event files of a run together, in the order they were begun.

    A run that was killed after its last checkpoint repeats steps when it is resumed: from the first step of a tag in
    the later file on, the later file counts. ``test`` and ``validate`` write beside the training: the test of the last
    file counts, and a validation outside the training is left out.
    """
    merged: dict[str, Curve] = {}
    for curves in files:
        fitted = any(not tag.startswith((*NOT_TRAINING, "val/")) for tag in curves)
        for tag, curve in curves.items():
            if tag.startswith("test/"):
                merged[tag] = curve
            elif fitted:
                merged[tag] = _continued(merged[tag], curve) if tag in merged else curve
    return merged


def _continued(earlier: Curve, later: Curve) -> Curve:
    kept = earlier.steps < later.steps[0]
    return Curve(
        np.concatenate([earlier.steps[kept], later.steps]), np.concatenate([earlier.values[kept], later.values])
    )


def _started(file: Path) -> tuple[int, ...]:
    """Event files are called ``events.out.tfevents.SECONDS.HOST.PID.COUNT``: the order they were begun in."""
    numbers = re.findall(r"\d+", file.name)
    return int(numbers[0]), int(numbers[-1])


def _natural(folder: Path) -> list[tuple[str, int]]:
    """``version_2`` before ``version_10``."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", f"/{folder}")]


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed only.

    Attributes:
        label: what it differs by from the other groups, or its folder.
        runs: one or more.
    """

    label: str
    runs: list[Run]

    @property
    def published(self) -> dict[str, Any]:
        """The row of a paper that the configuration names: `published`, and what it says of the run's meta-layer.

        An entry whose name is a meta-layer holds the numbers of the runs with that layer only; treatments of the
        pre-SVD layer are added to the name, as in ``svd-pade + NOG + OW``. The layer that the hybrid protocol switches
        to goes before the one that the model starts with; with other than the published `warmup_epochs`, the entry is
        the one of that name, as in ``svd-pade, warmup_epochs 2``.
        """
        published = self.runs[0].config.get("published")
        if not isinstance(published, dict):
            return {}
        common = {key: value for key, value in published.items() if not isinstance(value, dict)}
        settings = _settings(self.runs[0])
        layers = [str(settings[key]) for key in sorted(settings) if key.endswith(LAYER_KEYS)]
        names = [" + ".join([layer, *_treatments(settings)]) for layer in layers]
        warm_up = next((value for key, value in settings.items() if key.endswith("warmup_epochs")), None)
        if warm_up is not None and common.pop("warmup_epochs", warm_up) != warm_up:
            names = [f"{name}, warmup_epochs {warm_up}" for name in names]
        own = [published[name] for name in names if isinstance(published.get(name), dict)]
        return {**common, **(own[-1] if own else {})}


LAYER_KEYS = ("decorrelation", "meta_layer", "svd_layer")
"""Ends of the configuration's keys that name a method: of the model, and of the hybrid protocol."""

TREATMENTS = {
    "spectral": "SN",
    "OrthogonalLoss": "OL",
    "NearestOrthogonalGradient": "NOG",
    "orthogonal": "OW",
    "OptimalLearningRate": "OLR",
}
"""Treatments of the pre-SVD layer, by the weight_treatment or the class of the callback in the configuration."""

IRRELEVANT = (
    "seed_everything",
    "ckpt_path",
    "published",
    "predictions.",
    "checkpoint.dirpath",
    "data.init_args.num_workers",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_",
)
"""Beginnings of the configuration's keys that do not make another experiment."""


def group_by_experiment(runs: list[Run]) -> list[Group]:
    """Put the runs together whose configurations differ by their seed only; runs without one stay alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        key = repr(sorted(_settings(run).items())) if run.config else str(run.folder)
        groups.setdefault(key, []).append(run)
    members = [_furthest(runs) if runs[0].config else runs for runs in groups.values()]
    return [Group(label, runs) for label, runs in zip(_labels(members), members, strict=True)]


def _furthest(runs: list[Run]) -> list[Run]:
    """Of the runs of a group one a seed, those that went as far as any: a killed run is no sample of the result."""
    kept: dict[str, Run] = {}
    for run in runs:
        if run.seed not in kept or run.last_step >= kept[run.seed].last_step:
            kept[run.seed] = run
    longest = max(run.last_step for run in kept.values())
    result = [run for run in runs if kept[run.seed] is run and run.last_step == longest]
    for run in runs:
        if not any(run is other for other in result):
            print(f"{run.folder}: left out, another run of the same settings went as far or further", file=sys.stderr)
    return result


def _labels(groups: list[list[Run]]) -> list[str]:
    """What is different, if it is little to say; the folders where that is not enough to tell groups apart."""
    settings = [_settings(runs[0]) for runs in groups]
    keys = {key for one in settings for key in one}
    differing = sorted(key for key in keys if len({repr(one.get(key)) for one in settings}) > 1)
    differing.sort(key=lambda key: not key.endswith(LAYER_KEYS))
    labels = [", ".join(_words(key, one[key]) for key in differing if key in one) for one in settings]
    folders = [_folder(runs) for runs in groups]
    if not all(labels) or max(map(len, labels)) > 60 or len(set(labels)) < len(labels):
        labels = folders if len(set(folders)) == len(folders) else [str(runs[0].folder) for runs in groups]
    return labels


def _folder(runs: list[Run]) -> str:
    parents = {run.folder.resolve().parent for run in runs}
    if len(runs) > 1 and len(parents) == 1:
        return parents.pop().name
    return "/".join(runs[0].folder.resolve().parts[-2:])


def _words(key: str, value: Any) -> str:
    name = key.rsplit(".", 1)[-1]
    return str(value) if name in LAYER_KEYS else f"{name} {value}"


def _settings(run: Run) -> dict[str, Any]:
    """The settings as one flat dictionary, without those that do not matter."""
    flat = _flatten("", run.config) if run.config else {}
    return {key: value for key, value in flat.items() if not key.startswith(IRRELEVANT)}


def _treatments(settings: dict[str, Any]) -> list[str]:
    """The abbreviations of the treatments of ECCV 2022 that the settings ask for, in the paper's order."""
    asked = {
        str(value).rsplit(".", 1)[-1]
        for key, value in settings.items()
        if key.endswith("weight_treatment") or (key.startswith("trainer.callbacks.") and key.endswith("class_path"))
    }
    return [short for name, short in TREATMENTS.items() if name in asked]


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flatten(f"{prefix}.{key}".lstrip("."), inner).items()}
    return {prefix: value}

"""Groups runs by experiment: the same settings with different seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.console.errors import note
from app.report.runs import Run
from app.report.settings import LAYER_KEYS, published_of, settings_of

LONGEST_LABEL = 60
"""Characters of a label; above, groups are called by their folders."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        label: the settings by which it differs from the other groups, or its folder.
        runs: one or more.
    """

    label: str
    runs: list[Run]

    @property
    def published(self) -> dict[str, Any]:
        """The published numbers that its configuration names."""
        return published_of(self.runs[0])


def group_by_experiment(runs: Sequence[Run]) -> list[Group]:
    """Group runs whose configurations differ only in their seed; runs without a configuration stay alone."""
    by_settings: dict[str, list[Run]] = {}
    for run in runs:
        # Without configurations, nothing shows that two runs belong to the same experiment.
        key = repr(sorted(settings_of(run).items())) if run.config else str(run.folder)
        by_settings.setdefault(key, []).append(run)
    members = [_furthest(group) for group in by_settings.values()]
    return list(map(Group, _labels(members), members))


def _furthest(runs: list[Run]) -> list[Run]:
    """One run per seed, of those that trained furthest: a killed run is not a sample of the result."""
    if not runs[0].config:  # nothing says how far such a run was to train
        return runs
    kept: dict[str, Run] = {}
    for run in runs:
        if run.seed not in kept or run.last_step >= kept[run.seed].last_step:
            kept[run.seed] = run
    longest = max(run.last_step for run in kept.values())
    result = []
    for run in runs:
        if kept[run.seed] is run and run.last_step == longest:
            result.append(run)
        else:
            note(f"{run.folder}: left out, another run of the same settings went as far or further")
    return result


def _labels(groups: list[list[Run]]) -> list[str]:
    """The settings that differ; the folders where those are too long, or the same for two groups."""
    labels = _labels_by_settings(groups)
    if all(labels) and len(set(labels)) == len(labels) and max(map(len, labels)) <= LONGEST_LABEL:
        return labels
    folders = list(map(_folder, groups))
    if len(set(folders)) == len(folders):
        return folders
    return [str(runs[0].folder) for runs in groups]


def _labels_by_settings(groups: list[list[Run]]) -> list[str]:
    settings = [settings_of(runs[0]) for runs in groups]
    differing = []
    for key in sorted(set().union(*settings)):
        values = {repr(one.get(key)) for one in settings}
        if len(values) > 1:
            differing.append(key)
    differing.sort(key=lambda key: not key.endswith(LAYER_KEYS))  # methods first
    labels = []
    for one in settings:
        words = [_words(key, one[key]) for key in differing if key in one]
        labels.append(", ".join(words))
    return labels


def _folder(runs: list[Run]) -> str:
    """The folder that all runs share, or else the last two parts of the first run's path."""
    parents = {run.folder.resolve().parent for run in runs}
    if len(runs) > 1 and len(parents) == 1:
        return parents.pop().name
    return "/".join(runs[0].folder.resolve().parts[-2:])


def _words(key: str, value: Any) -> str:
    """The words of a setting: the name of a method speaks for itself, other values are named by their key."""
    name = key.rsplit(".", 1)[-1]
    if name in LAYER_KEYS:
        return str(value)
    return f"{name} {value}"


def layer_tags(groups: Sequence[Group], tag: str) -> list[str]:
    """The tags of a quantity that the runs have: itself, and ``tag/LAYER`` in networks with more than one layer."""
    found: set[str] = set()
    for group in groups:
        for run in group.runs:
            found.update(run.curves)
    return sorted(name for name in found if name == tag or name.startswith(f"{tag}/"))

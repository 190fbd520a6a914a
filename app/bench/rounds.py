"""Fair timing: every contestant runs once per round, in an order that changes.

Drift of the machine, and whatever the previous contestant leaves in caches and memory, then affect all of them alike.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

Run = Callable[[], Sequence[float]]
"""One timed run: seconds of the forward pass, and of forward and backward together, or of other parts."""


def interleave(
    runs: Mapping[str, Run], repeats: int, bar: tqdm[Any], warm_up: int = 1
) -> dict[str, list[Sequence[float]]]:
    """Time every contestant ``repeats`` times in rounds of random order.

    Args:
        runs: the contestants by name.
        repeats: rounds that count.
        bar: advances by one per run.
        warm_up: rounds before those; none for contestants that warm up in each run, as a `ShortFit` does.
    """
    times: dict[str, list[Sequence[float]]] = {name: [] for name in runs}
    generator = random.Random(0)  # the same orders every time the benchmark is run
    for number in range(warm_up + repeats):
        for name in generator.sample(list(runs), len(runs)):
            bar.set_postfix_str(name, refresh=False)
            seconds = runs[name]()
            if number >= warm_up:
                times[name].append(seconds)
            bar.update()
    return times


def medians(rounds: Sequence[Sequence[float]]) -> list[float]:
    """The median of each part over the rounds."""
    return [statistics.median(part) for part in zip(*rounds, strict=True)]

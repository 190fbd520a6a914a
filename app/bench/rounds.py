"""Fair timing: every contestant runs once per round, in an order that changes.

Drift of the machine, and what the contestant before leaves in caches and memory, then hit all alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

Run = Callable[[], Sequence[float]]
"""One timed run: seconds of the forward pass, and of forward and backward together, or of other parts."""


def interleave(runs: dict[str, Run], repeats: int, bar: tqdm[Any]) -> dict[str, list[Sequence[float]]]:
    """Time every contestant ``repeats`` times in rounds of random order, after a round of warm-up."""
    times: dict[str, list[Sequence[float]]] = {name: [] for name in runs}
    generator = random.Random(0)
    for repeat in range(repeats + 1):
        for name in generator.sample(list(runs), len(runs)):
            bar.set_postfix_str(name, refresh=False)
            seconds = runs[name]()
            if repeat > 0:
                times[name].append(seconds)
            bar.update()
    return times

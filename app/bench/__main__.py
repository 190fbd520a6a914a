"""``python -m app.bench``: the layers, or with a flag the step, the treatments or the networks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from app.console.errors import errors_in_one_line
from app.console.plugins import import_plugins

TOOLS = ("step", "treatments", "networks")
"""Flags that choose another benchmark than that of the layers; each is a module of its own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the arguments ask for, after importing the modules of ``--import``."""
    rest = import_plugins(sys.argv[1:] if arguments is None else arguments)
    with errors_in_one_line():
        _run(rest)


def _run(rest: list[str]) -> None:
    tool = "layers"
    for name in TOOLS:
        if f"--{name}" in rest:
            rest.remove(f"--{name}")
            tool = name
            break
    benchmark = importlib.import_module(f"app.bench.{tool}")  # the layers are measured without loading Lightning
    benchmark.main(rest)


if __name__ == "__main__":
    main()

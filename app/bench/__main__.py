"""``python -m app.bench``: the layers, or with a flag the step, the treatments or the networks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

TOOLS = ("step", "treatments", "networks")
"""Flags that choose another benchmark than that of the layers; each is a module of its own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the arguments ask for."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    tool = next((tool for tool in TOOLS if f"--{tool}" in arguments), "layers")
    benchmark = importlib.import_module(f"app.bench.{tool}")  # the layers alone are measured without Lightning
    benchmark.main([argument for argument in arguments if argument != f"--{tool}"])


if __name__ == "__main__":
    main()

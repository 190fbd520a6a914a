"""Tables and plots of finished, running or killed runs: ``python -m app.report RUN [RUN ...] [--output FOLDER]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from app.console.arguments import OneLineParser
from app.console.errors import describe, fail, wants_traceback
from app.report.document import write_report
from app.report.runs import Run, read_runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs and write the report."""
    parser = OneLineParser(
        "python -m app.report",
        usage="python -m app.report RUN [RUN ...] [--output FOLDER]",
        description="Write a report of runs: a table beside the published numbers, and plots.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (runs/demo/version_0), or of several (runs)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="FOLDER", help="where to write it (default: report)"
    )
    options = parser.parse_args(arguments)
    try:
        runs = _read(options.runs)
        _make(options.output)
        print(write_report(runs, options.output))
    except Exception as error:
        if wants_traceback():
            raise
        fail(_reason(error))


def _read(folders: Sequence[Path]) -> list[Run]:
    """All runs, each once, also where the folders contain each other."""
    runs: dict[Path, Run] = {}
    empty: list[Path] = []
    for folder in folders:
        found, without = read_runs(folder)
        runs.update({run.folder.resolve(): run for run in found})
        empty += without
    if not runs:
        raise ValueError(f"{folders[0]}: its event files hold no scalar: the run ended before it logged anything")
    for folder in empty:
        print(f"{folder}: its event files hold no scalar, left out", file=sys.stderr)
    return list(runs.values())


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder} cannot be made ({error.strerror}): give another folder") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return describe(error)


if __name__ == "__main__":
    main()

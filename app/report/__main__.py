"""Tables and plots of finished, running or killed runs: ``python -m app.report RUN [RUN ...] [--output FOLDER]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.console.arguments import OneLineParser
from app.console.errors import errors_in_one_line, note
from app.console.files import check_output_folder
from app.console.text import printable

if TYPE_CHECKING:
    from app.report.runs import Found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs and write the report."""
    options = _parse(arguments)
    with errors_in_one_line():
        _check_output(options.output)
        # Imported here, because matplotlib needs a folder for its fonts, and to find none is an error of one line too.
        from app.report.document import write_report

        found = _read(options.runs)
        for folder in found.empty:
            note(f"{folder}: its event files hold no scalar, left out")
        for problem in found.problems:
            note(problem)
        print(printable(str(write_report(found.runs, options.output, found.problems))))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        "python -m app.report",
        usage="python -m app.report RUN [RUN ...] [--output FOLDER]",
        description="Write a report of runs: tables of their results next to the published numbers, and plots.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="folder of a run (runs/demo/version_0), or of several (runs)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="FOLDER", help="folder of the report (default: report)"
    )
    return parser.parse_args(arguments)


def _check_output(folder: Path) -> None:
    try:
        check_output_folder(folder)
    except OSError as error:
        raise ValueError(f"--output: {error}: give another folder") from error


def _read(folders: Sequence[Path]) -> Found:
    """All runs, each once, even if the folders contain each other.

    Raises:
        ValueError: if there are none.
    """
    from app.report.runs import Found, Run, read_runs

    runs: dict[Path, Run] = {}
    empty: list[Path] = []
    problems: list[str] = []
    for folder in folders:
        found = read_runs(folder)
        runs.update({run.folder.resolve(): run for run in found.runs})
        empty += found.empty
        problems += found.problems
    if not runs and problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    if not runs:
        raise ValueError(f"{folders[0]}: its event files hold no scalar: the run ended before it logged anything")
    return Found(list(runs.values()), empty, list(dict.fromkeys(problems)))


if __name__ == "__main__":
    main()

"""Writes a report: tables and figures in one Markdown file."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from app.console.files import write_files
from app.console.table import Table
from app.console.text import printable, shortened
from app.report.experiments import group_by_experiment
from app.report.figures import FIGURES, draw_all
from app.report.runs import Run
from app.report.tables import condition_table, results_table, runs_table

PLOTS_NOTE = (
    "Of several seeds: thin lines, and their mean. Where a curve has more points than a figure can show, the band is "
    "the range within each small interval of steps, over all seeds and with every spike, and the line its median. "
    "Vertical lines: the hybrid protocol enters its next stage."
)

LONGEST_CELL = 300
"""Characters of a cell: all cells of a column are as wide as its longest."""


def write_report(runs: Sequence[Run], folder: Path, problems: Sequence[str] = ()) -> Path:
    """Write ``report.md`` and its pictures into a folder; other files there stay.

    An error leaves the files of an earlier report as they were.

    Args:
        runs: one or more.
        folder: is made if it does not exist.
        problems: descriptions of what could not be read, one sentence each.
    """
    groups = group_by_experiment(runs)
    text = ["# Report", "", *_list_of(problems)]
    for make in (results_table, condition_table, runs_table):
        table = make(groups)
        if table.rows:
            text.append(_escaped(table).markdown())
    text += ["## Plots", "", textwrap.fill(PLOTS_NOTE, 120), ""]
    files: dict[Path, bytes] = {}
    for name, (caption, picture) in draw_all(groups).items():
        files[folder / name] = picture
        text += [f"![{caption}]({name})", "", f"{caption}.", ""]
    report = folder / "report.md"
    files[report] = ("\n".join(text).rstrip() + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_files(files)
    for name in FIGURES:
        if folder / name not in files:
            (folder / name).unlink(missing_ok=True)  # of an earlier report
    return report


def _list_of(problems: Sequence[str]) -> list[str]:
    """A section that says what the report lacks."""
    if not problems:
        return []
    return ["## What could not be read", "", *(f"- {escaped(problem)}" for problem in problems), ""]


def _escaped(table: Table) -> Table:
    """A table in which text of the user cannot end a cell or a line."""
    rows = []
    for row in table.rows:
        rows.append([escaped(shortened(" ".join(cell.split()), LONGEST_CELL)) for cell in row])
    return Table(table.name, table.title, table.note, table.header, rows)


def escaped(text: str) -> str:
    r"""A text of the user that Markdown shows unchanged: no tags, links, code, formulae, cells or control characters.

    >>> escaped("a|<b>")
    'a\\|\\<b\\>'
    """
    return re.sub(r"([\\`*|<>&$\[\]])", r"\\\1", printable(text))

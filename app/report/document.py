"""Writes a report: tables and figures in one Markdown file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from app.console.table import Table
from app.report.experiments import group_by_experiment
from app.report.figures import draw_all
from app.report.runs import Run
from app.report.tables import condition_table, results_table, runs_table

PLOTS_NOTE = (
    "Of several seeds: thin lines, and their mean. Where a curve has more points than a figure can show, the band is "
    "the range within each small interval of steps, over all seeds and with every spike, and the line its median. "
    "Vertical lines: the hybrid protocol enters its next stage."
)


def write_report(runs: Sequence[Run], folder: Path) -> Path:
    """Write ``report.md`` and its pictures into a folder; other files there stay."""
    groups = group_by_experiment(runs)
    folder.mkdir(parents=True, exist_ok=True)
    text = ["# Report", ""]
    for make in (results_table, condition_table, runs_table):
        table = make(groups)
        if table.rows:
            text.append(_escaped(table).markdown())
    text += ["## Plots", "", textwrap.fill(PLOTS_NOTE, 120), ""]
    for file, caption in draw_all(groups, folder):
        text += [f"![{caption}]({file})", "", f"{caption}.", ""]
    report = folder / "report.md"
    report.write_text("\n".join(text).rstrip() + "\n", encoding="utf-8")
    return report


def _escaped(table: Table) -> Table:
    """A table in which text of the user cannot end a cell or a line."""
    rows = []
    for row in table.rows:
        rows.append([" ".join(cell.split()).replace("|", r"\|") for cell in row])
    return Table(table.name, table.title, table.note, table.header, rows)

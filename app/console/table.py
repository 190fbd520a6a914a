"""Text tables for terminals, reports and spreadsheets."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.console.files import write_file


@dataclass(frozen=True)
class Table:
    """A table whose cells are text.

    Attributes:
        name: file name of the CSV, without the ending.
        title: heading.
        note: explanations above the table.
        header: names of the columns.
        rows: the cells, as many per row as the header has.
    """

    name: str
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Heading, note and a Markdown table whose columns are aligned in a terminal."""
        text = [f"## {self.title}", ""]
        if self.note:
            text += [textwrap.fill(self.note, 120, break_on_hyphens=False), ""]
        widths = self._widths()
        text += [_line(self.header, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
        text += [_line(row, widths) for row in self.rows]
        return "\n".join([*text, ""])

    def _widths(self) -> list[int]:
        """Characters of the longest cell of each column."""
        columns = zip(self.header, *self.rows, strict=True)
        return [max(map(len, column)) for column in columns]

    def write_csv(self, folder: Path) -> None:
        """Write ``folder/name.csv``; an error leaves an older file as it was."""
        text = io.StringIO(newline="")
        csv.writer(text).writerows([self.header, *self.rows])
        write_file(folder / f"{self.name}.csv", text.getvalue().encode())


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
    return f"| {' | '.join(padded)} |"

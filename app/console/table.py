"""Tables of text for terminals, reports and spreadsheets."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        name: file name of the CSV, without the ending.
        title: heading.
        note: what the reader must know to read it.
        header: names of the columns.
        rows: the cells, as many a row as the header has.
    """

    name: str
    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Heading, note and a Markdown table whose columns are aligned in a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[c]) for line in lines) for c in range(len(self.header))]
        text = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
        text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
        note = [textwrap.fill(self.note, 120, break_on_hyphens=False), ""] if self.note else []
        return "\n".join([f"## {self.title}", "", *note, *text, ""])

    def write_csv(self, folder: Path) -> None:
        """Write ``folder/name.csv``."""
        with (folder / f"{self.name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([self.header, *self.rows])

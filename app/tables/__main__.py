"""The numerical tables of the layers: ``python -m app.tables``.

Approximation error of Taylor and Padé, bounds of the gradients, and forward and gradient error of every layer against
references in extended precision, next to the numbers of Song et al., ICCV 2021, where there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from app.console.arguments import OneLineParser
from app.console.errors import errors_in_one_line
from app.console.files import check_output_folder
from app.console.table import Table


def tables() -> Iterator[Table]:
    """Yield all tables, each as soon as it is computed."""
    # imported here, so that --help and a wrong flag are answered without torch, mpmath and scikit-image
    from app.tables.approximation import approximation_tables
    from app.tables.bounds import bounds_table
    from app.tables.layer_errors import layer_tables

    yield from approximation_tables()
    yield bounds_table()
    yield from layer_tables()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them where ``--csv`` says."""
    parser = OneLineParser(
        "python -m app.tables",
        usage="python -m app.tables [--csv FOLDER]",
        description="Print approximation errors, gradient bounds and errors of the layers as Markdown (half a minute).",
    )
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="also write one CSV file per table there")
    folder: Path | None = parser.parse_args(arguments).csv
    if folder is not None:
        try:
            check_output_folder(folder)
        except OSError as error:
            parser.error(f"--csv: {error}")
    with errors_in_one_line():
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        for table in tables():
            print(table.markdown(), flush=True)
            if folder is not None:
                table.write_csv(folder)


if __name__ == "__main__":
    main()

"""Draws the gradient rules as functions of the eigenvalue ratio: ``python -m app.plot``."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

from app.console.arguments import OneLineParser
from app.console.errors import errors_in_one_line
from app.console.files import check_output_file, write_file


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the figure into a file."""
    parser = OneLineParser(
        "python -m app.plot",
        usage="python -m app.plot [--output FILE]",
        description="Draw where the gradient rule of each layer departs from the true derivative.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("gradient_rules.png"), metavar="FILE", help="a .png, .pdf or .svg file"
    )
    path: Path = parser.parse_args(arguments).output
    if not path.suffix:
        path = path.with_name(f"{path.name}.png")
    try:
        check_output_file(path)
    except OSError as error:
        parser.error(f"--output: {error}")
    with errors_in_one_line():
        # Imported here, so that --help and a wrong flag are answered without torch and matplotlib, and that these find
        # no folder for temporary files in one line.
        import matplotlib
        from matplotlib.figure import Figure

        from app.plot.figure import draw

        kind = path.suffix.removeprefix(".").lower()
        if kind not in Figure().canvas.get_supported_filetypes():
            parser.error(f"--output: cannot write {path}: its format is none of .png, .pdf and .svg")
        picture = io.BytesIO()
        with matplotlib.rc_context({"font.size": 10}):
            draw().savefig(picture, dpi=125, format=kind)
        write_file(path, picture.getvalue())


if __name__ == "__main__":
    main()

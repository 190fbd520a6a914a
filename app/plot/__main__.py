"""Draws the gradient rules as functions of the eigenvalue ratio: ``python -m app.plot``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from app.console.arguments import OneLineParser


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

    # imported here, so that --help and a wrong flag are answered without torch and matplotlib
    import matplotlib

    from app.plot.figure import draw

    with matplotlib.rc_context({"font.size": 10}):
        figure = draw()
        try:
            figure.savefig(path, dpi=125)
        except (OSError, ValueError) as error:
            parser.error(f"--output: cannot write {path}: {error}")


if __name__ == "__main__":
    main()

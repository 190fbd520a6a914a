"""Times every spectral layer against a bare eigendecomposition: ``python -m app.bench``.

Figures are medians over the rounds of `app.bench.rounds`.

Shapes: d channels, N positions.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from app.bench.arguments import add_device, add_repeats
from app.bench.contestants import contestants
from app.bench.layer_costs import Figures, Size, measure
from app.console.arguments import OneLineParser, positive
from app.console.files import check_output_file, write_file
from app.console.table import Table

POSITIONS = (49, 169, 196, 784)
"""Feature maps of 7x7, 13x13 (AlexNet), 14x14 (ResNet) and 28x28 (ResNet at 448 pixels)."""

SWEEP = (64, 128, 512, 1024, 2048)
"""Channels of the second series of sizes, which has 14x14 maps and a small batch."""
SWEEP_BATCH, SWEEP_POSITIONS = 2, 196


def table(size: Size, figures: list[Figures]) -> Table:
    """The figures of one size as a table."""
    rows = []
    for f in figures:
        name = f.contestant if f.finite else f"{f.contestant}: overflow"
        row = [name, f"{f.forward_ms:.1f}", f"{f.total_ms:.1f}", f"{f.eigh_ratio:.2f}"]
        row.append("" if f.isqrt_ratio is None else f"{f.isqrt_ratio:.2f}")
        row.append(f"{f.saved_bytes / 1e6:.1f}" if f.saved_bytes else "")
        rows.append(row)
    header = ["layer", "forward ms", "forward + backward ms", "/ eigh", "/ isqrt-cov", "saved MB"]
    return Table("", str(size), "", header, rows)


def write_csv(path: Path, figures: Iterable[Figures], setting: str) -> None:
    """Write all figures, one line per contestant and size, each with the setting it was measured in."""
    lines = []
    for f in figures:
        line = asdict(f)
        lines.append(line.pop("size") | line | {"setting": setting})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, lines[0])
    writer.writeheader()
    writer.writerows(lines)
    write_file(path, text.getvalue().encode())


def sizes(options: argparse.Namespace) -> list[Size]:
    """The sizes that the flags select: a grid, and the sweep over the channels."""
    batches, sweep = options.batch, options.sweep
    if batches is None:
        batches = [16, 128] if options.full else [16]
    if sweep is None:
        sweep = SWEEP if options.full else SWEEP[:-1]
    grid = [Size(*shape) for shape in itertools.product(batches, options.channels, options.positions)]
    return grid + [Size(SWEEP_BATCH, d, SWEEP_POSITIONS) for d in sweep]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong flag ends in one line."""
    parser = OneLineParser(
        "python -m app.bench",
        usage="python -m app.bench [options]",
        description="Time the forward and backward pass of every layer, from features to the square root of their "
        "covariance (the default sizes take about three minutes on two cores).",
    )
    number: dict[str, Any] = {"type": positive, "metavar": "INT"}
    grid = " ".join(map(str, POSITIONS))
    sweep = " ".join(map(str, SWEEP[:-1]))
    names = list(contestants())
    parser.add_argument("--batch", nargs="+", **number, help="samples per batch (default: 16; with --full 16 128)")
    parser.add_argument("--channels", nargs="+", **number, default=[256], help="channels d (default: 256)")
    parser.add_argument(
        "--positions", nargs="+", **number, default=list(POSITIONS), help=f"positions N = H W (default: {grid})"
    )
    parser.add_argument(
        "--sweep",
        nargs="*",
        **number,
        help=f"channels of a second series of sizes, with batch {SWEEP_BATCH} and N = {SWEEP_POSITIONS}; without a "
        f"number there is none (default: {sweep}; with --full {sweep} {SWEEP[-1]})",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=names,
        metavar="NAME",
        default=names,
        help=f"all (default) or some of {', '.join(names)}",
    )
    add_repeats(parser, default=5)
    add_device(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float64",
        help="dtype of the features; the spectral part is float64 (default: %(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="all sizes; takes about ten minutes on two cores")
    _describe_other_flags(parser)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the measurements to this CSV file")
    options = parser.parse_args(arguments)
    try:
        torch.zeros(1, device=options.device, dtype=torch.float64)
    except (RuntimeError, TypeError, AssertionError):
        parser.error(f"--device: there is no {options.device!r} with float64 here")
    if options.csv is not None:
        try:
            check_output_file(options.csv)
        except OSError as error:
            parser.error(f"--csv: {error}")
    return options


def _describe_other_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `app.bench.__main__` removes beforehand, so that ``--help`` lists them."""
    parser.add_argument(
        "--import",
        metavar="MODULE",
        help="a module of your own, imported first: the methods that it registers are timed too",
    )
    parser.add_argument(
        "--step",
        action="store_true",
        help="instead, time the parts of a training step of a configuration: --step --config FILE [--synthetic SIDE], "
        "and the options of train.py fit",
    )
    parser.add_argument(
        "--treatments",
        action="store_true",
        help="instead, measure what the treatments of the pre-SVD layer add to a training step (--treatments --help)",
    )
    parser.add_argument(
        "--networks",
        action="store_true",
        help="instead, measure what covariance pooling costs in whole networks (--networks --help)",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sizes one after the other, and print each table as soon as it is measured."""
    options = parse(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    setting = _setting(device, options)
    print(f"{setting}. The spectral part is float64.\n", flush=True)
    layers = {name: layer for name, layer in contestants().items() if name in options.methods}
    all_sizes = sizes(options)
    figures: list[Figures] = []
    steps = len(all_sizes) * (len(layers) + 1) * (options.repeats + 1)
    with tqdm(total=steps, leave=False, disable=None) as bar:
        for size in all_sizes:
            bar.set_description(str(size))
            found = measure(size, layers, options.repeats, device, dtype, bar)
            bar.clear()
            print(table(size, found).markdown(), flush=True)
            figures += found
    if options.csv is not None:
        write_csv(options.csv, figures, setting)


def _setting(device: torch.device, options: argparse.Namespace) -> str:
    name = f"{torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return f"{device} ({name}), torch {torch.__version__}, {options.dtype} features, medians of {options.repeats}"

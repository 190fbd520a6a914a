"""Command-line flags that several benchmarks share."""

from __future__ import annotations

import argparse

import torch

from app.console.arguments import positive


def add_batch(parser: argparse.ArgumentParser, default: int) -> None:
    """Add ``--batch``, the images of a step."""
    parser.add_argument("--batch", type=positive, default=default, help="images per step (default: %(default)s)")


def add_repeats(parser: argparse.ArgumentParser, default: int) -> None:
    """Add ``--repeats``, the rounds that are timed."""
    parser.add_argument(
        "--repeats",
        type=positive,
        metavar="INT",
        default=default,
        help="timed rounds, after a warm-up (default: %(default)s)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``; a GPU is the default where there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="cpu, cuda or cuda:INDEX (default: %(default)s)")

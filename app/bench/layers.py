"""Times every spectral layer beside a bare eigendecomposition: ``python -m app.bench``.

Figures are medians over the rounds of `app.bench.rounds`.

Shapes: B batch, d channels, N positions.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from app.bench.rounds import Run, interleave
from app.console.arguments import OneLineParser, positive
from app.console.table import Table
from app.spectral import METHODS, covariance_sqrt

PRODUCTS, UNROLLED = "isqrt-cov (products)", "isqrt-cov (unrolled)"

POSITIONS = (49, 169, 196, 784)
"""Feature maps of 7x7, 13x13 (AlexNet), 14x14 (ResNet) and 28x28 (ResNet at 448 pixels)."""

SWEEP = (64, 128, 512, 1024, 2048)
"""Channels of the second series of sizes, which has 14x14 maps and a small batch."""
SWEEP_BATCH, SWEEP_POSITIONS = 2, 196

Layer = Callable[[Tensor], Tensor]
"""From features ``(B, d, N)`` to ``(B, d, d)``."""


@dataclass(frozen=True)
class Size:
    """A shape of features, ``(batch, channels, positions)``."""

    batch: int
    channels: int
    positions: int

    def __str__(self) -> str:
        return f"batch {self.batch}, d = {self.channels}, N = {self.positions}"


@dataclass(frozen=True)
class Figures:
    """What was measured of one contestant at one size.

    Attributes:
        forward_ms: median time of the forward pass that keeps what backward needs, in milliseconds.
        total_ms: median time of forward and backward, in milliseconds.
        eigh_ratio: ``total_ms`` over that of a bare `torch.linalg.eigh` of the smaller side, in float64.
        isqrt_ratio: ``total_ms`` over that of isqrt-cov; ``None`` if that did not run.
        saved_bytes: memory that the forward pass leaves behind for the backward pass.
        finite: whether the gradient came out finite.
    """

    size: Size
    contestant: str
    forward_ms: float
    total_ms: float
    eigh_ratio: float
    isqrt_ratio: float | None
    saved_bytes: int
    finite: bool


def contestants() -> dict[str, Layer]:
    """All layers by name: the methods, and two more ways to run isqrt-cov."""
    layers: dict[str, Layer] = {name: partial(covariance_sqrt, method=name) for name in METHODS}
    layers[PRODUCTS] = partial(covariance_sqrt, method="isqrt-cov", route="products")
    layers[UNROLLED] = unrolled_isqrt_cov
    return layers


def unrolled_isqrt_cov(X: Tensor, iterations: int = 5) -> Tensor:
    """The baseline: Newton-Schulz in float64 under plain autograd (Song et al., ICCV 2021, eq. 7 to 9).

    With the usual shortcuts: the first step needs no product with Z = I, the last one computes no Z.

    Args:
        X: features ``(B, d, N)``.
        iterations: number of steps, at least 2.
    """
    Y = X.double()
    Y = Y - Y.mean(-1, keepdim=True)
    P = Y @ Y.mT / X.shape[-1]
    trace = P.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    A = P / trace
    three = 3 * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    Z = 0.5 * (three - A)
    Y = A @ Z
    for _ in range(iterations - 2):
        W = 0.5 * (three - Z @ Y)
        Y, Z = Y @ W, W @ Z
    Y = 0.5 * Y @ (three - Z @ Y)
    return (Y * trace.sqrt()).to(X.dtype)


def time_layer(layer: Layer, X: Tensor, G: Tensor) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward with dL/dQ = G, for features X that require a gradient."""
    start = _now(X.device)
    Q = layer(X)
    middle = _now(X.device)
    torch.autograd.grad(Q, X, G)
    return middle - start, _now(X.device) - start


def time_eigh(gram: Tensor) -> tuple[float, float]:
    """Seconds of a bare eigendecomposition, twice: there is no backward pass."""
    start = _now(gram.device)
    torch.linalg.eigh(gram)
    seconds = _now(gram.device) - start
    return seconds, seconds


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def measure(
    size: Size, layers: dict[str, Layer], repeats: int, device: torch.device, dtype: torch.dtype, bar: tqdm[Any]
) -> list[Figures]:
    """Figures of a bare eigendecomposition (first) and of the layers, at one size, on random ReLU features."""
    generator = torch.Generator().manual_seed(0)
    B, d, N = size.batch, size.channels, size.positions
    X = torch.randn(B, d, N, generator=generator, dtype=dtype).relu_().to(device).requires_grad_()
    G = torch.randn(B, d, d, generator=generator, dtype=dtype).to(device)
    Y = X.detach().double()
    Y = Y - Y.mean(-1, keepdim=True)
    eigh = f"eigh of {min(d, N)}x{min(d, N)}"
    runs: dict[str, Run] = {eigh: partial(time_eigh, Y.mT @ Y if d > N else Y @ Y.mT)}
    runs |= {name: partial(time_layer, layer, X, G) for name, layer in layers.items()}
    medians = {
        name: tuple(1000 * statistics.median(column) for column in zip(*times, strict=True))
        for name, times in interleave(runs, repeats, bar).items()
    }
    figures = []
    for name, (forward, total) in medians.items():
        saved, finite = _saved_and_finite(layers[name], X, G) if name in layers else (0, True)
        isqrt_ratio = total / medians["isqrt-cov"][1] if "isqrt-cov" in medians else None
        figures.append(Figures(size, name, forward, total, total / medians[eigh][1], isqrt_ratio, saved, finite))
    return figures


def _saved_and_finite(layer: Layer, X: Tensor, G: Tensor) -> tuple[int, bool]:
    """Bytes of the distinct storages that the graph keeps, and whether the gradient is finite."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Q = layer(X)
    (gradient,) = torch.autograd.grad(Q, X, G)
    return sum(storages.values()), bool(gradient.isfinite().all())


def table(size: Size, figures: list[Figures]) -> Table:
    """The figures of one size as a table."""
    rows = []
    for f in figures:
        saved = f"{f.saved_bytes / 1e6:.1f}" if f.saved_bytes else ""
        isqrt_ratio = "" if f.isqrt_ratio is None else f"{f.isqrt_ratio:.2f}"
        name = f.contestant if f.finite else f"{f.contestant}: overflow"
        rows.append([name, f"{f.forward_ms:.1f}", f"{f.total_ms:.1f}", f"{f.eigh_ratio:.2f}", isqrt_ratio, saved])
    header = ["layer", "forward ms", "forward + backward ms", "/ eigh", "/ isqrt-cov", "saved MB"]
    return Table("", str(size), "", header, rows)


def write_csv(path: Path, figures: Iterable[Figures], setting: str) -> None:
    """Write all figures, one line a contestant and size, each with the setting they were measured in."""
    names = [field.name for field in fields(Figures) if field.name != "size"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(field.name for field in fields(Size)), *names, "setting"])
        for f in figures:
            writer.writerow([*asdict(f.size).values(), *(getattr(f, name) for name in names), setting])


def sizes(options: argparse.Namespace) -> list[Size]:
    """The sizes that the flags select: a grid, and the sweep over the channels."""
    batches = options.batch or ([16, 128] if options.full else [16])
    sweep = options.sweep if options.sweep is not None else SWEEP if options.full else SWEEP[:-1]
    grid = [Size(B, d, N) for B in batches for d in options.channels for N in options.positions]
    return [*grid, *(Size(SWEEP_BATCH, d, SWEEP_POSITIONS) for d in sweep)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; a wrong flag ends in one line."""
    parser = OneLineParser(
        "python -m app.bench",
        usage="python -m app.bench [options]",
        description="Time the forward and backward pass of every layer, from features to the square root of their "
        "covariance (the default sizes take about three minutes on two cores).",
    )
    number = {"type": positive, "metavar": "INT"}
    grid = " ".join(map(str, POSITIONS))
    sweep = " ".join(map(str, SWEEP[:-1]))
    names, device = list(contestants()), "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--batch", nargs="+", **number, help="samples in a batch (default: 16; with --full 16 128)")
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
        "--methods", nargs="+", choices=names, metavar="NAME", default=names, help=f"all (default) or some of {names}"
    )
    parser.add_argument("--repeats", **number, default=5, help="timed rounds, after a warm-up (default: %(default)s)")
    parser.add_argument("--device", default=device, help="cpu, cuda or cuda:INDEX (default: %(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float64"],
        default="float64",
        help="dtype of the features; the spectral part is float64 (default: %(default)s)",
    )
    parser.add_argument("--full", action="store_true", help="all sizes; takes about ten minutes on two cores")
    parser.add_argument(
        "--step",
        action="store_true",
        help="take a training step of a configuration apart instead: --step --config FILE [--synthetic SIDE], and the "
        "options of train.py fit",
    )
    parser.add_argument(
        "--treatments",
        action="store_true",
        help="measure instead what the treatments of the pre-SVD layer add to a training step (--treatments --help)",
    )
    parser.add_argument(
        "--networks",
        action="store_true",
        help="measure instead what covariance pooling costs in whole networks (--networks --help)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args(arguments)
    try:
        torch.zeros(1, device=options.device, dtype=torch.float64)
    except (RuntimeError, TypeError, AssertionError):
        parser.error(f"--device: there is no {options.device!r} with float64 here")
    if options.csv is not None and not options.csv.parent.is_dir():
        parser.error(f"--csv: there is no folder {options.csv.parent}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sizes one after another, and print a table of each as soon as it is there."""
    options = parse(arguments)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    setting = f"{device} ({name}), torch {torch.__version__}, {options.dtype} features, medians of {options.repeats}"
    print(f"{setting}. The spectral part is float64.\n", flush=True)
    layers = {name: layer for name, layer in contestants().items() if name in options.methods}
    all_sizes, figures = sizes(options), []
    steps = len(all_sizes) * (len(layers) + 1) * (options.repeats + 1)
    with tqdm(total=steps, leave=False, disable=None) as bar:
        for size in all_sizes:
            bar.set_description(str(size))
            figures.append(measure(size, layers, options.repeats, device, dtype, bar))
            bar.clear()
            print(table(size, figures[-1]).markdown(), flush=True)
    if options.csv is not None:
        write_csv(options.csv, [f for group in figures for f in group], setting)

"""Measures the time and memory of layers and of a bare eigendecomposition for one size of the features.

Shapes: B batch, d channels, N positions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from app.bench.contestants import Layer
from app.bench.rounds import Run, interleave, medians


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
    """The costs of one contestant at one size.

    Attributes:
        size: size of the features.
        contestant: its name.
        forward_ms: median time of the forward pass, which saves tensors for the backward pass, in milliseconds.
        total_ms: median time of forward and backward, in milliseconds.
        eigh_ratio: ``total_ms`` divided by that of a bare `torch.linalg.eigh` of the smaller side, in float64.
        isqrt_ratio: ``total_ms`` divided by that of isqrt-cov; ``None`` if that did not run.
        saved_bytes: memory that the forward pass saves for the backward pass.
        finite: whether the gradient is finite.
    """

    size: Size
    contestant: str
    forward_ms: float
    total_ms: float
    eigh_ratio: float
    isqrt_ratio: float | None
    saved_bytes: int
    finite: bool


def time_layer(layer: Layer, X: Tensor, G: Tensor) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward with dL/dQ = G, for features X that require a gradient."""
    start = _now(X.device)
    Q = layer(X)
    middle = _now(X.device)
    torch.autograd.grad(Q, X, G)
    return middle - start, _now(X.device) - start


def time_eigh(gram: Tensor) -> tuple[float, float]:
    """Seconds of a bare eigendecomposition, given twice because there is no backward pass."""
    start = _now(gram.device)
    torch.linalg.eigh(gram)
    seconds = _now(gram.device) - start
    return seconds, seconds


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def measure(
    size: Size,
    layers: Mapping[str, Layer],
    repeats: int,
    device: torch.device,
    dtype: torch.dtype,
    bar: tqdm[Any],
) -> list[Figures]:
    """Figures of a bare eigendecomposition (first) and of the layers, for one size, on random ReLU features."""
    X, G = _features(size, device, dtype)
    smaller = min(size.channels, size.positions)
    eigh = f"eigh of {smaller}x{smaller}"
    runs: dict[str, Run] = {eigh: partial(time_eigh, _gram(X.detach()))}
    for name, layer in layers.items():
        runs[name] = partial(time_layer, layer, X, G)
    milliseconds = {}
    for name, times in interleave(runs, repeats, bar).items():
        forward, total = medians(times)
        milliseconds[name] = (1000 * forward, 1000 * total)

    figures = []
    for name, (forward, total) in milliseconds.items():
        saved, finite, isqrt_ratio = 0, True, None
        if name in layers:
            saved, finite = saved_and_finite(layers[name], X, G)
        if "isqrt-cov" in milliseconds:
            isqrt_ratio = total / milliseconds["isqrt-cov"][1]
        figures.append(Figures(size, name, forward, total, total / milliseconds[eigh][1], isqrt_ratio, saved, finite))
    return figures


def _features(size: Size, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random ReLU features ``(B, d, N)`` that require a gradient, and an upstream gradient ``(B, d, d)``."""
    # Drawn on the CPU, so that every device gets the same numbers.
    generator = torch.Generator().manual_seed(0)
    B, d, N = size.batch, size.channels, size.positions
    X = torch.randn(B, d, N, generator=generator, dtype=dtype).relu_().to(device).requires_grad_()
    G = torch.randn(B, d, d, generator=generator, dtype=dtype).to(device)
    return X, G


def _gram(X: Tensor) -> Tensor:
    """The smaller of the two Gram matrices of the centred features, in float64."""
    Y = X.double()
    Y = Y - Y.mean(-1, keepdim=True)
    d, N = Y.shape[-2:]
    if d > N:
        return Y.mT @ Y
    return Y @ Y.mT


def saved_and_finite(layer: Layer, X: Tensor, G: Tensor) -> tuple[int, bool]:
    """Bytes of the distinct storages that the graph keeps, and whether the gradient is finite."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # views share a storage, which counts once
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        Q = layer(X)
    (gradient,) = torch.autograd.grad(Q, X, G)
    return sum(storages.values()), bool(gradient.isfinite().all())

"""Errors of every layer, forward and backward, on real feature maps: the precision question of ICCV 2021, sec. 3.2.

Shapes: B photographs, d channels, N positions.
"""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from app.console.table import Table
from app.spectral import METHODS, covariance_sqrt
from app.spectral.newton_schulz import Coefficients, classic, minimax
from app.tables.numbers import number
from app.tables.photographs import PHOTOGRAPHS, feature_maps
from app.tables.reference import DIGITS, Reference

SIDES = (5, 7, 14)
"""Side lengths of the maps: N = 25 < d, where the covariance lacks full rank (as 14x14 of 256 channels), 49 and 196."""

LAYER_NOTE = (
    "Relative errors in the Frobenius norm, the largest of all photographs, of Q and of dL/dX for a random dL/dQ, with "
    "the spectral part in float64 and in float32. First against the exact square root and its exact gradient: what the "
    "method leaves out, and what rounding adds. Then ('own'), for the layers with a Newton-Schulz iteration, against "
    "the same iteration in extended precision: rounding alone."
)

TOPN = 25
"""svd-topn keeps 25 of the 32 channels here, the share of the 200 of 256 in appendix D."""

ITERATIONS: dict[str, Coefficients] = {"isqrt-cov": classic(5), "ns-minimax": minimax(5), "svd-newton": classic(10)}
"""The layers that use a Newton-Schulz iteration, with their default options."""

Pair = tuple[np.ndarray, np.ndarray]
"""Q ``(d, d)`` and dL/dX ``(d, N)`` of one photograph."""


def layer_tables() -> list[Table]:
    """A table for each size of the maps."""
    tables = []
    with (
        mpmath.workdps(DIGITS),
        tqdm(total=len(SIDES) * len(PHOTOGRAPHS), desc="references", leave=False, disable=None) as bar,
    ):
        for side in SIDES:
            tables.append(_layer_table(feature_maps(side).flatten(2), bar))
    return tables


def _layer_table(X: Tensor, bar: tqdm[Any]) -> Table:
    B, d, N = X.shape
    G = torch.randn(B, d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    G = (G + G.mT) / 2
    references, spans = _references(X, G, bar)
    note = (
        f"ReLU feature maps of {B} photographs, d = {d} channels, N = {N} positions; the rank is at most "
        f"{min(d, N - 1)}, the nonzero eigenvalues of a covariance span a factor of {number(min(spans))} to "
        f"{number(max(spans))}. {LAYER_NOTE} svd-topn keeps {TOPN} eigenvalues."
    )
    parts = ["Q f64", "dX f64", "Q f32", "dX f32"]
    header = ["layer", *parts, *(f"own {part}" for part in parts)]
    rows = []
    for name in METHODS:
        rows.append(_layer_row(name, X, G, references))
    return Table(f"layer_errors_{N}", f"Errors of the layers, N = {N}", note, header, rows)


def _references(X: Tensor, G: Tensor, bar: tqdm[Any]) -> tuple[dict[str, list[Pair]], list[float]]:
    """The exact pairs and those of `ITERATIONS`, by name; and the largest eigenvalue over the smallest nonzero one."""
    references: dict[str, list[Pair]] = {name: [] for name in ("exact", *ITERATIONS)}
    spans = []
    for x, g in zip(X.numpy(), G.numpy(), strict=True):
        reference = Reference(x, g)
        references["exact"].append(reference.exact())
        for name, steps in ITERATIONS.items():
            references[name].append(reference.iteration(steps))
        s = reference.factors[0]
        spans.append(float((s[-1] / s[0]) ** 2))
        bar.update()
    return references, spans


def _layer_row(name: str, X: Tensor, G: Tensor, references: dict[str, list[Pair]]) -> list[str]:
    cells, own = [], []
    for dtype in (torch.float64, torch.float32):
        result = layer_result(X, G, name, dtype)
        cells += _errors(result, references["exact"])
        if name in ITERATIONS:
            own += _errors(result, references[name])
        else:
            own += ["", ""]
    # The forward pass of svd-newton is exact: its iteration is in the backward pass only.
    if name == "svd-newton":
        own[0] = own[2] = ""
    return [name, *cells, *own]


def layer_result(X: Tensor, G: Tensor, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Q ``(B, d, d)`` and dL/dX ``(B, d, N)`` of a layer for dL/dQ = G, both float64."""
    options: dict[str, Any] = {"topn": TOPN} if name == "svd-topn" else {}
    X = X.clone().requires_grad_()
    Q = covariance_sqrt(X, name, dtype=dtype, **options)
    (gradient,) = torch.autograd.grad(Q, X, G)
    return Q.detach(), gradient


def _errors(result: tuple[Tensor, Tensor], references: list[Pair]) -> list[str]:
    """Largest relative error of the batch, of Q and of dL/dX, as text."""
    cells = []
    for k, batch in enumerate(result):
        errors = []
        for value, reference in zip(batch.numpy(), references, strict=True):
            # The gradient of svd-pi overflows, and the table reports it.
            with np.errstate(over="ignore", invalid="ignore"):
                errors.append(float(np.linalg.norm(value - reference[k]) / np.linalg.norm(reference[k])))
        cells.append(number(max(errors)) if np.isfinite(errors).all() else "overflow")
    return cells

"""Counts the multiply-adds of a network, eigendecompositions included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

EIGH_MULTIPLY_ADDS = 4.5
"""times n^3: the symmetric QR algorithm with eigenvectors takes 9 n^3 flops (Golub and Van Loan, sec. 8.3)."""


def multiply_adds(model: nn.Module, image: Tensor) -> tuple[float, float]:
    """Multiply-adds of a forward pass of one image ``(1, 3, H, W)``, which the papers call FLOPs.

    Returns:
        all of them, and those of eigendecompositions. Torch counts a decomposition as nothing; here it counts by the
        formula `EIGH_MULTIPLY_ADDS`. A Newton-Schulz layer has none where it runs by products.
    """
    training = model.training
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._linalg_eigh: _eigh_flops})
    with torch.no_grad(), counter:
        model.eval()(image)
    model.train(training)
    decompositions = counter.get_flop_counts()["Global"].get(torch.ops.aten._linalg_eigh, 0)
    return counter.get_total_flops() / 2, decompositions / 2


def _eigh_flops(shape: Sequence[int], *rest: Any, **options: Any) -> int:
    *batch, n, _ = shape
    return round(2 * EIGH_MULTIPLY_ADDS * n**3) * math.prod(batch)

"""Gradients that cannot be differentiated again, and say so.

`torch.autograd.function.once_differentiable` does not suffice: its error has no edge to the inputs, so that
`torch.autograd.grad` of, say, a gradient penalty would pass it by and silently leave out the second derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def anchor(x: Tensor) -> Tensor:
    """An empty tensor in the graph of x: what a backward pass keeps to tie its result to x, without memory."""
    return x[:0].clone()


def once(gradient: Tensor, anchored: Tensor) -> Tensor:
    """The gradient, tied to x by its `anchor`; to differentiate it raises a RuntimeError."""
    return _Once.apply(gradient, anchored) if torch.is_grad_enabled() else gradient


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchored: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[None, None]:
        raise RuntimeError("this spectral layer can be differentiated once; matrix_sqrt by svd-exact can be twice")

"""Gradients that raise an error when they are differentiated again.

`torch.autograd.function.once_differentiable` does not suffice: its error has no edge to the inputs, so
`torch.autograd.grad` of, say, a gradient penalty would skip it and silently leave out the second derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def graph_anchor(x: Tensor) -> Tensor:
    """An empty tensor in the graph of x: a backward pass keeps it to tie its result to x without using memory."""
    return x[:0].clone()


def once_differentiable(gradient: Tensor, anchor: Tensor) -> Tensor:
    """The gradient, tied to x by its `graph_anchor`; differentiating it raises a RuntimeError."""
    return _OnceDifferentiable.apply(gradient, anchor) if torch.is_grad_enabled() else gradient


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, anchor: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[None, None]:
        raise RuntimeError(
            "this spectral layer can be differentiated once; matrix_sqrt with svd-exact can be differentiated twice"
        )

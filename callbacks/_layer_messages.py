"""Messages of spectral layers that met non-finite values."""

from __future__ import annotations

from torch import nn

from ._library import spectral_layers


class LayerMessages:
    """Collects the messages of spectral layers about non-finite values, and has them return NaN instead of raising.

    An error in one process would leave the others waiting in their next communication. So the layers of all processes
    continue, and a callback decides at a time when all processes can take part.

    Attributes:
        first: the first message since the last `clear`, or ``None``.
    """

    def __init__(self) -> None:
        self.first: str | None = None

    def clear(self) -> None:
        """Forget the messages."""
        self.first = None

    def collect(self, model: nn.Module) -> None:
        """Collect the messages of the layers of a model from now on."""
        for layer in spectral_layers(model).values():
            layer.non_finite_handler = self._receive

    def stop(self, model: nn.Module) -> None:
        """Let the layers raise errors again."""
        for layer in spectral_layers(model).values():
            layer.non_finite_handler = None

    def _receive(self, message: str) -> None:
        self.first = self.first or message

"""Accumulated gradients: several batches per step of the optimizer."""

from __future__ import annotations

import pytorch_lightning as pl


def awaits_more_batches(trainer: pl.Trainer) -> bool:
    """Whether the optimizer does not step after the batch in progress, because its gradient is still accumulated.

    The last batch of an epoch always ends in a step. Lightning 2.6 has no public method that says so.
    """
    return trainer.fit_loop._should_accumulate()

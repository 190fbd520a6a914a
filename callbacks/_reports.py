"""Messages that the processes of a run exchange."""

from __future__ import annotations

import pytorch_lightning as pl


def reports_of_ranks(trainer: pl.Trainer, text: str | None) -> list[str]:
    """The texts of all processes that have one, each with its rank; the same list on every process."""
    reports = []
    for rank in range(trainer.world_size):
        of_rank = trainer.strategy.broadcast(text, src=rank)
        if of_rank:
            reports.append(f"rank {rank} of {trainer.world_size}, {of_rank}")
    return reports

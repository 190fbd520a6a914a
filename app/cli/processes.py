"""How several processes part."""

from __future__ import annotations

import torch.distributed


def leave_process_group() -> None:
    """End the communication of a run that went well.

    Lightning 2.6 does so for NCCL only; a process that ends with gloo's threads alive may be aborted on its way out,
    which torchrun and SLURM take for a failed run.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

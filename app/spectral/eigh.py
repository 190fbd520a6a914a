"""Batched symmetric eigendecomposition with the failure policy of every layer.

Shapes: B batch, n matrix size. Everything here runs without autograd.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from threading import Barrier

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

CHECK_EVERY = 50
"""Calls between two sampled checks: one matrix in 50 batches costs far less than 1 % of the decompositions."""

RESIDUAL_LIMIT = 50.0
"""Residuals above this multiple of ``n * eps`` are errors (LAPACK's test programs flag them above 30 to 50)."""


@dataclass
class FailureCounts:
    """Counts of the decompositions of one layer and of their failures since the layer was built (plain integers).

    Attributes:
        calls: batches decomposed.
        not_converged: matrices for which the backend reported no convergence.
        silently_wrong: matrices whose eigenvectors failed the sampled check of residual and orthogonality.
        solved_on_cpu: failed matrices that were solved by a float64 retry on the CPU.
        solved_by_iteration: failed matrices that were left to the Newton-Schulz iteration by products.
    """

    calls: int = 0
    not_converged: int = 0
    silently_wrong: int = 0
    solved_on_cpu: int = 0
    solved_by_iteration: int = 0

    @property
    def failures(self) -> int:
        """Matrices whose first decomposition failed, reported or silently."""
        return self.not_converged + self.silently_wrong

    def as_dict(self) -> dict[str, int]:
        """The counts as a plain dictionary, for logs."""
        return asdict(self)


def eigh(A: Tensor, counts: FailureCounts | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Decompose ``A = V diag(l) V^T``; matrices that fail are solved one by one, without touching the others.

    A matrix that does not converge, or that fails the sampled check, is retried in float64 on the CPU. If that fails
    too, the matrix is marked in the mask, with eigenvalues of one and eigenvectors of zero, and left to a route that
    needs no decomposition. Nothing is raised here, so that the processes of a run stay in step.

    Args:
        A: finite symmetric matrices ``(B, n, n)``, float32 or float64.
        counts: where failures are counted; without it there is no sampled check.

    Returns:
        eigenvalues ``(B, n)`` in ascending order, eigenvectors ``(B, n, n)`` as columns, and a mask ``(B,)`` of the
        unsolved matrices, ``None`` when there are none.
    """
    checked = counts is not None  # the check is sampled over the calls of a layer
    if counts is None:
        counts = FailureCounts()
    counts.calls += 1
    try:
        eigenvalues, V = _eigh_in_threads(A.detach())
    except LinAlgError:
        return _one_by_one(A, counts)
    if checked and counts.calls % CHECK_EVERY == 1 and len(A):
        sample = slice((b := counts.calls // CHECK_EVERY % len(A)), b + 1)
        if _is_wrong(A[sample], eigenvalues[sample], V[sample]).any():
            wrong = _is_wrong(A, eigenvalues, V)
            counts.silently_wrong += int(wrong.sum())
            return _retry(A, eigenvalues, V, wrong.nonzero().flatten().tolist(), counts)
    return eigenvalues, V, None


def _eigh_in_threads(A: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.linalg.eigh`; on a CPU, the batch is divided among threads.

    The backend would use all threads on one small matrix after another. They would then meet at a barrier thousands of
    times, which is slow at best, and stalls when loader workers or other programs use the same cores.
    """
    threads = min(torch.get_num_threads(), len(A))
    if threads < 2 or A.device.type != "cpu":
        eigenvalues, V = torch.linalg.eigh(A)
        return eigenvalues, V
    shares = list(_single_threads(torch.get_num_threads()).map(torch.linalg.eigh, A.tensor_split(threads)))
    return torch.cat([share[0] for share in shares]), torch.cat([share[1] for share in shares])


@cache
def _single_threads(threads: int) -> ThreadPoolExecutor:
    """A pool of threads, in each of which torch uses one thread."""

    def use_one_thread() -> None:
        torch.get_num_threads()  # a new thread adopts the global number when it first uses torch: trigger that now
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, "eigh", initializer=use_one_thread)
    together = Barrier(threads)
    list(pool.map(lambda _: together.wait(), range(threads)))  # starts all of them
    torch.set_num_threads(threads)  # threads that are started elsewhere later adopt the number that was set last
    return pool


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads of its parent (Windows does not fork)
    os.register_at_fork(after_in_child=_single_threads.cache_clear)


def _is_wrong(A: Tensor, eigenvalues: Tensor, V: Tensor) -> Tensor:
    """Mask ``(B,)`` of ``|A V - V l|_F > c n eps |A|_F`` or ``|V^T V - I|_F > c n eps``; NaN counts as wrong."""
    n = A.shape[-1]
    limit = RESIDUAL_LIMIT * n * torch.finfo(A.dtype).eps
    residual = torch.linalg.matrix_norm(A @ V - V * eigenvalues.unsqueeze(-2))
    skewness = torch.linalg.matrix_norm(V.mT @ V - torch.eye(n, dtype=A.dtype, device=A.device))
    wrong: Tensor = ~((residual <= limit * torch.linalg.matrix_norm(A)) & (skewness <= limit))
    return wrong


def _one_by_one(A: Tensor, counts: FailureCounts) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find the matrices of a batch that do not converge, and keep the results of the others."""
    eigenvalues, V = A.new_zeros(A.shape[:-1]), torch.zeros_like(A)
    failed = []
    for b in range(len(A)):
        try:
            eigenvalues[b], V[b] = torch.linalg.eigh(A[b])
        except LinAlgError:
            failed.append(b)
    counts.not_converged += len(failed)
    return _retry(A, eigenvalues, V, failed, counts)


def _retry(
    A: Tensor, eigenvalues: Tensor, V: Tensor, failed: list[int], counts: FailureCounts
) -> tuple[Tensor, Tensor, Tensor | None]:
    if not failed:
        return eigenvalues, V, None
    unsolved = torch.zeros(len(A), dtype=torch.bool, device=A.device)
    for b in failed:
        A_cpu = A[b : b + 1].to("cpu", torch.float64)
        try:
            l_cpu, V_cpu = torch.linalg.eigh(A_cpu)
            solved = not _is_wrong(A_cpu, l_cpu, V_cpu).item()
        except LinAlgError:
            solved = False
        if solved:
            eigenvalues[b], V[b] = l_cpu[0].to(eigenvalues), V_cpu[0].to(V)
        else:
            eigenvalues[b], V[b], unsolved[b] = 1, 0, True
    left = int(unsolved.sum())
    # Counting on the host costs nothing more: this path has already waited for the device.
    counts.solved_on_cpu += len(failed) - left
    counts.solved_by_iteration += left
    warnings.warn(
        f"{len(failed)} of {len(A)} eigendecompositions failed; {len(failed) - left} solved in float64 on the CPU, "
        f"{left} left to the Newton-Schulz iteration",
        RuntimeWarning,
        stacklevel=2,
    )
    if not left:
        return eigenvalues, V, None
    return eigenvalues, V, unsolved

"""The decomposition of a batch by several threads on a CPU: the same numbers, and no trace left behind."""

from __future__ import annotations

import os
import threading

import pytest
import torch

from app.spectral import FailureCounts, matrix_sqrt
from app.spectral.eigh import _single_threads, eigh


@pytest.fixture(autouse=True)
def _three_threads(_one_thread):
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def matrices(normal):
    B = normal(7, 6, 9)
    return B @ B.mT


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_the_same_as_one_by_one(matrices, count):
    eigenvalues, V, unsolved = eigh(matrices[:count])
    assert unsolved is None
    assert eigenvalues.shape == (count, 6)
    assert V.shape == (count, 6, 6)
    for b in range(count):
        expected, U = torch.linalg.eigh(matrices[b])
        # the same routine on the same numbers: only how many threads it uses differs
        torch.testing.assert_close(eigenvalues[b], expected)
        torch.testing.assert_close(V[b] * (V[b] * U).sum(0).sign(), U)


def test_every_thread_decomposes_with_one_thread(matrices, monkeypatch):
    seen, original = [], torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda A: (seen.append((torch.get_num_threads(), len(A))), original(A))[1]
    )
    eigh(matrices)
    assert sorted(seen) == [(1, 2), (1, 2), (1, 3)]


def test_the_number_of_threads_stays(matrices):
    _single_threads.cache_clear()  # the pool that is made now must leave no trace
    eigh(matrices)
    assert torch.get_num_threads() == 3
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_a_failure_in_one_share_reaches_the_failure_policy(matrices, monkeypatch):
    original = torch.linalg.eigh

    def fails(A):
        if A.dtype == torch.float64 and (A.diagonal(dim1=-2, dim2=-1).sum(-1) > 1e6).any() and not A.ndim == 2:
            raise torch.linalg.LinAlgError("no convergence")
        return original(A)

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    matrices[5] *= 1e6
    counts = FailureCounts()
    eigenvalues, _, unsolved = eigh(matrices, counts)
    # the batch fails, the matrices one by one do not
    assert (counts.not_converged, unsolved) == (0, None)
    torch.testing.assert_close(eigenvalues, original(matrices)[0])


def test_gradients_do_not_leak_into_the_threads(matrices):
    P = matrices.requires_grad_()
    matrix_sqrt(P).sum().backward()
    assert P.grad.isfinite().all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forking is for POSIX systems")
def test_in_a_forked_process(matrices):
    eigh(matrices)  # the pool exists before the fork
    pid = os.fork()
    if pid == 0:
        eigh(matrices)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

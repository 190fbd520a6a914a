"""Loader processes: a check before they start, and their response to signals."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from typing import Any


def check_room_for_queues(workers: int) -> None:
    """Check that there is shared memory for the queues of some loader processes.

    torch 2.14 would fail halfway, with an error that does not name shared memory and another one from the destructor of
    its half-built loader.

    Raises:
        RuntimeError: if there is not.
    """
    queues: list[Any] = []
    try:
        for _ in range(workers + 1):  # one for each process, and one for what they load
            queues.append(multiprocessing.Queue())
    except OSError as error:
        raise RuntimeError(
            f"no room in shared memory (/dev/shm) for the queues of {workers} loader processes: {error.strerror}"
        ) from error


def obey_the_main_process_only(_: int) -> None:
    """Leave signals sent to all processes of a run to the main process, which needs its loader to finish and save.

    This is the `worker_init_fn` of the loaders. SIGUSR1 is ignored. SIGTERM ends the process if the main process sent
    it, as PyTorch does to shut a loader down, and is ignored from anybody else.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS does not say who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_the_main_process, daemon=True).start()


def _end_with_the_main_process() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)

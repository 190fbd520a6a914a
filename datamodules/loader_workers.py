"""How loader processes answer signals."""

from __future__ import annotations

import os
import signal
import threading


def obey_the_main_process_only(_: int) -> None:
    """Leave signals that are sent to all processes of a run to the main one, which needs its loader to finish and save.

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

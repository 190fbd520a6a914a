"""2,000 steps of the demo with all monitors on: memory and open files must not grow. ``python tests/soak.py``.

Not collected by pytest: it takes a few minutes. It prints a table, and exits with 1 if the second half of the run grew
by more than `MEMORY` or `FILES`.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from pathlib import Path

import pytorch_lightning as pl

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STEPS, EVERY, MEMORY, FILES = 2000, 200, 20.0, 2
"""Steps of the run and between two rows, and the growth in MB and open files that is allowed after the first half."""

MONITORS = ("ConditionNumberMonitor", "SVDFailureCounter", "GradientSmoothness", "LossLandscape")


class Usage(pl.Callback):
    """Resident memory and open files of this process every so many steps."""

    rows: list[tuple[int, float, int]] = []  # noqa: RUF012 - read after the run

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            row = (trainer.global_step, pages * resource.getpagesize() / 1e6, len(os.listdir("/proc/self/fd")))  # noqa: PTH208
            self.rows.append(row)
            print("step {:5d}  memory {:7.1f} MB  open files {:3d}".format(*row), flush=True)


def main() -> None:
    from app.cli.main import main as run

    callbacks: list[str] = []
    for name in MONITORS:
        callbacks += ["--trainer.callbacks+", name]
    sys.modules.setdefault("soak", sys.modules["__main__"])  # `Usage` is chosen by its class path
    os.chdir(tempfile.mkdtemp())
    run([
        "fit", "--config", str(ROOT / "configs/demo.yaml"), "--model.meta_layer", "svd-exact",
        "--trainer.max_steps", str(STEPS), "--trainer.max_epochs", "-1", "--trainer.enable_progress_bar", "false",
        "--last.every_n_steps", "10", *callbacks, "--trainer.callbacks+", "soak.Usage",
    ])  # fmt: skip
    half = [row for row in Usage.rows if row[0] >= STEPS // 2]
    memory, files = half[-1][1] - half[0][1], half[-1][2] - half[0][2]
    print(f"growth from step {half[0][0]} to {half[-1][0]}: {memory:.1f} MB, {files} open files")
    sys.exit(int(memory > MEMORY or files > FILES))


if __name__ == "__main__":
    main()

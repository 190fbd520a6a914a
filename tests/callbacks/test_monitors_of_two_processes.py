"""Monitors and protocol in two gloo processes, one of which meets failures: they log the values of one process."""

import itertools

import pytest
import torch

from callbacks.condition_number_monitor import QUANTITIES

PARTS = "tests.callbacks.parts"
CONFIG = f"""
model: {{class_path: {PARTS}.Plain}}
data: {{class_path: {PARTS}.Fixed}}
trainer:
  accelerator: cpu
  enable_progress_bar: false
  max_epochs: 3
  log_every_n_steps: 1
  logger: {{class_path: TensorBoardLogger, init_args: {{save_dir: runs, name: run, default_hp_metric: false}}}}
  callbacks:
    - {{class_path: ConditionNumberMonitor, init_args: {{every_n_steps: 2}}}}
    - {{class_path: SVDFailureCounter}}
    - {{class_path: HybridProtocol, init_args: {{switch_epoch: 1}}}}
    - {{class_path: {PARTS}.Keeper, init_args: {{folder: .}}}}
"""
TWO = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


def broken(rank, steps):
    return ("--trainer.callbacks+", f"{PARTS}.Breaker", "--trainer.callbacks.rank", rank, "--trainer.callbacks.steps",
            f"[{steps}]")  # fmt: skip


@pytest.fixture
def runs(main, train, tmp_path):
    """The folder of a run of one process and of one that two processes resume, and the messages of the latter."""
    (tmp_path / "run.yaml").write_text(CONFIG)
    fit = ("fit", "--config", "run.yaml", "--trainer.logger.save_dir")
    assert main(*fit, "whole") == 0
    # four images of step 2; of the second process, which has two of four, those of steps 13 and 14
    assert main(*fit, "parts", *broken(0, 2), "--trainer.max_epochs", 2) == 0
    run = train(*fit, "parts", *broken(1, "13, 14"), *TWO, "--ckpt_path", "last", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    return tmp_path, run.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*eigendecompositions failed")
def test_two_processes_log_what_one_logs_and_stay_in_step(runs, scalars):
    folder, errors = runs
    one, other = (scalars(folder / run / "run/version_0") for run in ("whole", "parts"))
    tags = [f"covariance/{name}" for name in QUANTITIES]
    epochs = [f"{tag}_epoch" for tag in tags]
    for tag in [*tags, *epochs, "hybrid/stage", "svd/validation_failures"]:
        assert [step for step, _ in other[tag]] == [step for step, _ in one[tag]]
        # float32 training, sums in another order
        assert [v for _, v in other[tag]] == pytest.approx([v for _, v in one[tag]], rel=1e-4)
    stages = [value for _, value in other["hybrid/stage"]]
    assert [stage for stage, _ in itertools.groupby(stages)] == [0, 1, 2]

    assert [value for _, value in other["svd/failures"]] == [4, 4, 8]
    assert [value for _, value in other["svd/failures_epoch"]] == [4, 0, 4]
    assert [value for _, value in other["svd/solved_on_cpu"]] == [4, 4, 8]
    assert errors.count("eigendecompositions that failed in training: 8; 8 not converged") == 1
    first, second = (torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    # metrics are sums that each process keeps of its own images
    assert all(torch.equal(first[name], second[name]) for name in first if not name.startswith("metrics."))

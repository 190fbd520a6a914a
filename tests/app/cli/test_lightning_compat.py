"""Why each workaround for Lightning is there: these tests fail once Lightning is mended."""

import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger

from app.cli.lightning_compat import (
    LoadInPrecisionOfRun,
    allocation_without_srun,
    end_child_processes,
    ignore_unfounded_warnings,
    interrupted_by_user,
    keep_csv_logs,
    refuse_checkpoint_of_requeue,
)
from tests.conftest import ROOT

ORIGINAL = dict(vars(_ExperimentWriter))
"""Lightning's own CSV writer, before any test replaces parts of it."""


def small_trainer(folder, *callbacks, **options):
    return pl.Trainer(
        default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=1, limit_train_batches=1, limit_val_batches=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **options,
    )  # fmt: skip


class Interrupt(pl.Callback):
    def on_train_start(self, *_):
        raise KeyboardInterrupt


def test_lightning_makes_an_exit_of_ctrl_c(tmp_path):
    with pytest.raises(SystemExit) as end:
        small_trainer(tmp_path, Interrupt()).fit(BoringModel())
    assert end.value.code == 1
    assert interrupted_by_user(end.value)
    assert not interrupted_by_user(SystemExit(1))


WATCHED = """
import subprocess, sys, time
from types import SimpleNamespace
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from app.cli.lightning_compat import end_child_processes

child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
_ChildProcessObserver(main_pid=__import__("os").getpid(), child_processes=[child], sleep_period=1).start()
if sys.argv[1] == "end":
    end_child_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[child]))))
child.wait()
time.sleep(4)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("what", "status"), [("nothing", -9), ("end", 0)])
def test_lightning_kills_this_process_when_a_child_has_failed(what, status):
    run = subprocess.run([sys.executable, "-c", WATCHED, what], cwd=ROOT, check=False, timeout=120)
    assert run.returncode == status


def test_children_that_hang_are_ended(monkeypatch):
    monkeypatch.setattr("app.cli.lightning_compat.PATIENCE", 0.1)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    end_child_processes(SimpleNamespace(strategy=SimpleNamespace(launcher=SimpleNamespace(procs=[child]))))
    assert child.wait(timeout=20) == -9


GLOO = """
import atexit
import torch.distributed
# Handlers run in reverse order: this one after that of Lightning, if it had one.
atexit.register(lambda: print("initialized", torch.distributed.is_initialized()))
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.utilities.distributed import _init_dist_connection
_init_dist_connection(LightningEnvironment(), "gloo", 0, 1)
"""


@pytest.mark.slow
def test_lightning_leaves_the_process_group_of_gloo_alive():
    run = subprocess.run(
        [sys.executable, "-c", GLOO], cwd=ROOT, check=False, timeout=120, capture_output=True, text=True
    )
    assert "initialized True" in run.stdout, run.stderr


def test_lightning_uses_a_deprecated_name_of_torch(tmp_path):
    def warned(prepare):
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            prepare()
            small_trainer(tmp_path).fit(BoringModel())
        return any("LeafSpec" in str(warning.message) for warning in record)

    assert warned(lambda: None)
    assert not warned(ignore_unfounded_warnings)


@pytest.fixture
def allocation(monkeypatch):
    for name, value in {"JOB_NAME": "mine", "JOB_ID": "1", "NTASKS": "2", "NTASKS_PER_NODE": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURM_PROCID", raising=False)


def test_lightning_names_an_environment_variable_where_srun_is_missing(allocation):
    with pytest.raises(KeyError, match="SLURM_"):
        pl.Trainer(accelerator="cpu", devices=2, logger=False)
    assert allocation_without_srun()


def test_lightning_resumes_from_the_requeued_checkpoint_of_any_run(allocation, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    for name in ("PROCID", "LOCALID", "NODEID"):
        monkeypatch.setenv(f"SLURM_{name}", "0")
    first = small_trainer(tmp_path)
    first.fit(BoringModel())
    first.save_checkpoint(tmp_path / "hpc_ckpt_1.ckpt")

    second = small_trainer(tmp_path, max_steps=-1)
    second.fit(BoringModel())
    assert second.global_step == first.global_step  # nothing is left to do
    assert str(second.ckpt_path).endswith("hpc_ckpt_1.ckpt")
    with pytest.raises(ValueError, match=r"hpc_ckpt_1\.ckpt would be loaded"):
        refuse_checkpoint_of_requeue({"trainer": {"default_root_dir": str(tmp_path)}})


@pytest.mark.parametrize(("callbacks", "exact"), [((), False), ((LoadInPrecisionOfRun,), True)])
def test_lightning_loads_weights_before_it_converts_the_model(tmp_path, callbacks, exact):
    def trainer():
        return small_trainer(tmp_path, *(kind() for kind in callbacks), precision="64-true")

    model = BoringModel()
    first = trainer()
    first.fit(model)
    with torch.no_grad():
        model.layer.weight.fill_(1 / 3)
    first.save_checkpoint(tmp_path / "third.ckpt")
    again = BoringModel()
    trainer().test(again, ckpt_path=tmp_path / "third.ckpt", verbose=False)
    assert torch.equal(again.layer.weight, model.layer.weight) == exact


@pytest.mark.parametrize("keeps", [False, True])
def test_lightning_removes_the_csv_log_of_a_run(tmp_path, monkeypatch, keeps):
    for name in ("_check_log_dir_exists", "_rewrite_with_new_header", "NAME_METRICS_FILE"):
        monkeypatch.setattr(_ExperimentWriter, name, ORIGINAL[name])
    if keeps:
        keep_csv_logs("metrics.csv")
    for step, metrics in enumerate(({"b": 1.0}, {"a": 2.0, "b": 3.0})):
        logger = CSVLogger(tmp_path, name="", version="")
        logger.log_metrics(metrics, step)
        logger.save()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == (["a,b,step", ",1.0,0", "2.0,3.0,1"] if keeps else ["a,b,step", "2.0,3.0,1"])

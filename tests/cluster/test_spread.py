"""Two gloo processes train as one: the same global batches give the same losses, monitors and parameters."""

import os
import subprocess
import sys

import pytest
import torch

from tests.cluster.spread import TRAININGS, train
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # real processes, signals and time-outs

SAME = [name for name in TRAININGS if "by itself" not in name]
ALONE = "decorrelated, each process by itself"
STEPS = 18

# What two processes change is the order of sums of at most n = 144 terms (4 images of 36 positions): a relative error
# of n eps = 3e-14 in the gradient of a step. The gradient of the (inverse) square root amplifies it by at most
# sqrt(l_max / l_min), below 10 here. The errors of 18 steps add up, each ten times (momentum 0.9): 3e-14 * 10 * 180.
# Seen: 5e-15.
BOUND = 6e-11


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests" / "cluster" / "spread.py")
    run = subprocess.run([*command, script, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def difference(one, other):
    """Largest difference of the parameters, relative to the largest entry of each."""
    return max(float((one[k] - other[k]).abs().max() / one[k].abs().max().clamp_min(1e-300)) for k in one)


@pytest.mark.filterwarnings("ignore:.*eigendecompositions failed", "ignore:.*across ranks")
@pytest.mark.parametrize("name", SAME)
def test_as_one_process(name, two):
    one = train(name, 1)
    for rank in range(2):
        assert difference(one["state"], two[rank][name]["state"]) < BOUND
    logged = two[0][name]["logged"]
    assert logged.keys() == one["logged"].keys()
    assert len([key for key in logged if key[0] == "train/loss"]) == STEPS
    for key, value in one["logged"].items():
        assert logged[key] == pytest.approx(value, rel=BOUND, abs=BOUND), key
    assert all(torch.equal(two[0][name]["state"][key], value) for key, value in two[1][name]["state"].items())


def test_the_test_can_fail(two):
    """Statistics of each process by itself are other statistics."""
    assert difference(train(ALONE, 1)["state"], two[0][ALONE]["state"]) > 1e-3


def test_processes_with_different_checkpoints_stop(two):
    for rank, own in enumerate(("rank0.ckpt", "None")):
        message = two[rank]["different checkpoints"]
        assert "the processes found different checkpoints" in message
        assert f"process {rank} " in message
        assert f"{own})" in message

"""Reading event files: exact numbers, also of runs that were killed, resumed or tested."""

import os

import numpy as np
import pytest

from app.report.runs import read_run
from tests.app.report.event_files import trained, write


def test_a_resumed_run_is_one_curve(tmp_path):
    first = {"train/loss": {0: 1, 10: 2, 20: 3, 30: 4}, "val/top1": {9: 0.1, 19: 0.2, 29: 0.3}}
    write(tmp_path, first, begun=99)
    write(tmp_path, {"train/loss": {20: 30, 30: 40, 40: 50}, "val/top1": {29: 0.5}}, begun=100)
    # `validate` and `test` write into the same folder, at step 0
    write(tmp_path, {"val/top1": {0: 0.9}, "test/top1": {0: 0.7}, "epoch": {0: 0}}, begun=101)
    curves = read_run(tmp_path).curves
    assert {tag: dict(zip(c.steps, c.values, strict=True)) for tag, c in curves.items()} == {
        "train/loss": {0: 1, 10: 2, 20: 30, 30: 40, 40: 50},
        "val/top1": pytest.approx({9: 0.1, 19: 0.2, 29: 0.5}),
        "test/top1": pytest.approx({0: 0.7}),
    }


def test_a_file_that_ends_within_a_record_is_read_that_far(tmp_path):
    file = write(tmp_path, {"train/loss": {step: step for step in range(50)}})
    whole = file.stat().st_size
    os.truncate(file, whole - 10)
    assert read_run(tmp_path).curves["train/loss"].steps.tolist() == list(range(49))
    os.truncate(file, whole // 2)
    assert 15 < len(read_run(tmp_path).curves["train/loss"].steps) < 35


def test_nothing_is_thinned_out_of_a_long_run(tmp_path):
    write(tmp_path, {"train/loss": dict.fromkeys(range(20000), 0.0)})
    assert len(read_run(tmp_path).curves["train/loss"].steps) == 20_000  # more than TensorBoard keeps by itself


def test_epochs_are_counted_after_the_last_whole_one(tmp_path):
    run = read_run(trained(tmp_path / "a"))
    assert run.epochs(np.array([-1, 4, 9, 29, 34])).tolist() == pytest.approx([0, 0.5, 1, 3, 3.5])

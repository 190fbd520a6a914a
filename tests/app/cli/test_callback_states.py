"""States of callbacks of other kinds, and contradicting ones."""

from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from app.cli.callback_states import check_callback_state
from callbacks import ConditionNumberMonitor, HybridProtocol, LastCheckpoint, NonFinitePolicy, SVDFailureCounter
from callbacks.condition_number_monitor import QUANTITIES

PROTOCOL = {
    "stage": 1, "switch_epoch": 3, "decay_epoch": 4, "first_layer": "isqrt-cov", "first_options": {},
    "svd_layer": "svd-pade", "svd_options": {},
}  # fmt: skip
ROW = [1.0] * (len(QUANTITIES) + 1)


@pytest.mark.parametrize(
    ("callback", "state", "message"),
    [
        (HybridProtocol(), PROTOCOL, None),
        (HybridProtocol(), {}, None),
        (HybridProtocol(), {**PROTOCOL, "stage": "x"}, "c.stage is x, not a whole number"),
        (HybridProtocol(), {**PROTOCOL, "stage": 7}, "c.stage is 7, not one of"),
        (HybridProtocol(), {**PROTOCOL, "svd_layer": [1]}, "c.svd_layer is .*, not a text"),
        (HybridProtocol(), {**PROTOCOL, "decay_epoch": None}, "c.decay_epoch is None, not a whole number"),
        (HybridProtocol(), [1], "c is .*, not a dictionary"),
        (SVDFailureCounter(), {"train": {"pooling": {"calls": 3}}, "val": {}}, None),
        (SVDFailureCounter(), {"train": {"pooling": {"calls": "x"}}}, "c.train.pooling.calls is x, not a whole number"),
        (ConditionNumberMonitor(), {"sums": {"pooling": ROW}}, None),
        (ConditionNumberMonitor(), {"sums": {"pooling": ["x"] * len(ROW)}}, r"c.sums.pooling\[0\] is x, not a number"),
        (ConditionNumberMonitor(), {"sums": {"pooling": ROW[:3]}}, "c.sums.pooling has 3 numbers, not 7"),
        (ConditionNumberMonitor(), {"sums": [ROW]}, "c.sums is .*, not a dictionary"),
        (NonFinitePolicy(), {"skipped": 3}, None),
        (NonFinitePolicy(), {"skipped": None}, "c.skipped is None, not a whole number"),
        (EarlyStopping("val/loss"), {"wait_count": "x"}, "c.wait_count is x, not a whole number"),
        (EarlyStopping("val/loss"), {"best_score": torch.tensor(0.5), "patience": 3}, None),
        (ModelCheckpoint(), {"best_model_path": "a", "best_k_models": {"a": torch.tensor(0.5)}, "dirpath": None}, None),
        (ModelCheckpoint(), {"best_k_models": {"a": torch.zeros(3)}}, "c.best_k_models holds .*, not a score"),
        (ModelCheckpoint(), {"best_k_models": {"a": torch.zeros((), device="meta")}}, "not a score"),
        (ModelCheckpoint(), {"best_k_models": {3: torch.zeros(())}}, "a path in c.best_k_models is 3, not a text"),
        (LastCheckpoint(), {"dirpath": 3}, "c.dirpath is 3, not a text"),
        (LastCheckpoint(), {"last_model_path": None}, "c.last_model_path is None, not a text"),
    ],
)
def test_states(callback, state, message):
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check_callback_state(state, callback, "c")

"""The tables of a report: results beside the published ones, and condition numbers by stage."""

import pytest

from app.report.figures import draw_all
from app.report.tables import condition_table, results_table, runs_table
from tests.app.report.event_files import groups, trained, write


def cells(table):
    return [list(row) for row in table.rows]


def test_numbers_of_seeds_beside_the_published(tmp_path):
    published = {"table": "ICCV 2021, table 2", "row": "SVD-Padé", "final_top1_error": 43.59, "best_top1_error": 43.3}
    seeds = [trained(tmp_path / f"version_{k}", k, shift=0.02 * k, published=published) for k in range(3)]
    (group,) = groups(*seeds)
    rows = {row[1]: row[2:] for row in cells(results_table([group]))}
    source = "ICCV 2021, table 2, SVD-Padé"
    assert rows == {
        "top-1 error": ["47.00 ± 2.00 (min 45.00)", "42.00 ± 2.00 (min 40.00)", "final 43.59, best 43.3", source],
        "top-1 accuracy": ["53.00 ± 2.00 (max 55.00)", "58.00 ± 2.00 (max 60.00)", "final 56.41, best 56.7", source],
        "top-5 error": ["17.00 ± 2.00 (min 15.00)", "12.00 ± 2.00 (min 10.00)", "", ""],
        "top-5 accuracy": ["83.00 ± 2.00 (max 85.00)", "88.00 ± 2.00 (max 90.00)", "", ""],
    }
    table = [row[1:] for row in cells(runs_table([group]))]
    assert table == [[str(folder), str(k), "3", "30", "4"] for k, folder in enumerate(seeds)]
    stages = [row[1:] for row in cells(condition_table([group]))]
    assert stages == [["Newton-Schulz", "2e+10 ± 0"], ["warm-up", "7e+06 ± 0"], ["SVD", "20 ± 0"]]


def test_layers_and_stages_of_an_unfinished_run(tmp_path):
    tags = [f"covariance/condition_number/{layer}" for layer in ("backbone.bn1", "pooling")]
    first, second = {0: 1.0, 5: 3.0, 12: 8.0}, {0: 10.0, 5: 30.0, 12: 80.0}
    write(tmp_path, {"train/loss": {0: 1.0}, "hybrid/stage": {9: 0}, tags[0]: first, tags[1]: second})
    (group,) = groups(tmp_path)
    rows = cells(condition_table([group]))
    name = "/".join(tmp_path.parts[-2:])
    assert rows == [[f"{name}, backbone.bn1", "Newton-Schulz", "4"], [f"{name}, pooling", "Newton-Schulz", "40"]]
    assert len(draw_all(groups(tmp_path))["condition_number.png"][1]) > 10_000


@pytest.mark.parametrize(
    ("meta_layer", "callback", "published"),
    [
        ("svd-pade", None, ("1.5", "table 2, Padé")),
        ("isqrt-cov", None, ("2", "table 2")),
        ("isqrt-cov", "svd-pade", ("1.5", "table 2, Padé")),  # the hybrid protocol ends with it
        ("gap", None, ("", "")),
    ],
)
def test_published_by_meta_layer(meta_layer, callback, published, tmp_path):
    numbers = {"table": "table 2", "svd-pade": {"row": "Padé", "top1_error": 1.5}, "isqrt-cov": {"top1_accuracy": 98}}
    trainer = {"callbacks": [{"class_path": "HybridProtocol", "init_args": {"svd_layer": callback}}]}
    (group,) = groups(trained(tmp_path, meta_layer=meta_layer, trainer=trainer, published=numbers))
    assert tuple(results_table([group]).rows[0][4:]) == published


@pytest.mark.parametrize(("warm_up", "expected"), [(1, "47.76"), (2, "47.7"), (3, "")])
def test_published_by_warm_up(warm_up, expected, tmp_path):
    numbers = {
        "table": "table 2",
        "warmup_epochs": 1,
        "svd-pade": {"top1_error": 47.76},
        "svd-pade, warmup_epochs 2": {"top1_error": 47.70},
    }
    callback = {"class_path": "HybridProtocol", "init_args": {"svd_layer": "svd-pade", "warmup_epochs": warm_up}}
    (group,) = groups(trained(tmp_path, meta_layer="isqrt-cov", trainer={"callbacks": [callback]}, published=numbers))
    assert str(group.published.get("top1_error", "")) == expected

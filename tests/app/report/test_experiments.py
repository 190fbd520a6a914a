"""Grouping: which runs are seeds of one experiment, and what it is called."""

from pathlib import Path

import yaml

from app.report.experiments import group_by_experiment
from app.report.runs import read_runs
from tests.app.report.event_files import groups, trained, write


def test_groups_are_named_by_what_differs(tmp_path):
    folders = [
        trained(tmp_path / "a" / "version_0", 0),
        trained(tmp_path / "a" / "version_1", 1, trainer={"logger": {"name": "again"}}),
        trained(tmp_path / "b", 0, "mpn-cov"),
        trained(tmp_path / "c", 0, "mpn-cov", trainer={"max_epochs": 5}),
    ]
    found = groups(*folders)
    assert [(group.label, len(group.runs)) for group in found] == [
        ("svd-pade", 2),
        ("mpn-cov", 1),
        ("mpn-cov, max_epochs 5", 1),
    ]
    assert [group.label for group in groups(*folders[:2])] == ["a"]
    (folders[2] / "config.yaml").unlink()  # a run without one stays alone, and is called by its folder
    assert [group.label for group in groups(*folders[:3])] == ["a", f"{tmp_path.name}/b"]


def test_a_killed_run_is_not_a_sample(tmp_path, capsys):
    """Of one seed the run that went further counts, and a seed that was killed does not."""
    runs = [trained(tmp_path / "version_0"), trained(tmp_path / "version_1"), trained(tmp_path / "version_2", 1)]
    write(tmp_path / "version_3", {"val/top1": {1: 0.1}, "train/top1": {1: 0.1}, "epoch": {1: 0}})
    killed = yaml.safe_load((runs[0] / "config.yaml").read_text())
    (tmp_path / "version_3/config.yaml").write_text(yaml.safe_dump({**killed, "seed_everything": 7}))
    (group,) = group_by_experiment(read_runs(tmp_path).runs)
    assert [run.folder.name for run in group.runs] == ["version_1", "version_2"]
    left_out = capsys.readouterr().err.splitlines()
    assert [Path(line.partition(":")[0]).name for line in left_out] == ["version_0", "version_3"]

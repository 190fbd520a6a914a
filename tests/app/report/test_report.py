"""The report: exact numbers from real event files, runs that were killed, resumed or tested, and the command."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from app.report import __main__ as report
from app.report.curves import BINS, FIGURES, binned
from app.report.runs import Curve, group_by_experiment, read_run, read_runs


def write(folder, scalars, config=None, begun=1):
    """A version folder with an event file of ``{tag: {step: value}}``."""
    before = set(folder.glob("events*"))
    writer = SummaryWriter(folder)
    for tag, curve in scalars.items():
        for step, value in curve.items():
            writer.add_scalar(tag, value, step)
    writer.close()
    (file,) = set(folder.glob("events*")) - before
    file = file.rename(folder / f"events.out.tfevents.{begun}.host.1.0")
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return file


def trained(folder, seed=0, meta_layer="svd-pade", shift=0.0, **config):
    """A run of three epochs of ten steps: top-1 errors of 50, 40 and 45 percent."""
    ends = (9, 19, 29)
    top1 = dict(zip(ends, (0.5 - shift, 0.6 - shift, 0.55 - shift), strict=True))
    scalars = {
        "train/loss": {0: 2.0, 10: 1.0, 20: 0.5},
        "train/top1": dict.fromkeys(ends, 0.5),
        "epoch": {0: 0, 10: 1, 20: 2, 9: 0, 19: 1, 29: 2},
        "val/top1": top1,
        "val/top5": {step: value + 0.3 for step, value in top1.items()},
        "covariance/condition_number": {0: 1e10, 5: 3e10, 12: 7e6, 22: 10.0, 28: 30.0},
        "hybrid/stage": {9: 0, 19: 1, 29: 2},  # logged at the end of each epoch
        "svd/failures": {0: 0, 28: 4},
    }
    model = {"init_args": {"meta_layer": meta_layer, "dim": 32}}
    write(folder, scalars, {"seed_everything": seed, "model": model, **config})
    return folder


def cells(table):
    return [list(row) for row in table.rows]


def groups(*folders):
    return group_by_experiment([read_run(folder) for folder in folders])


def test_numbers_of_seeds_beside_the_published(tmp_path):
    published = {"table": "ICCV 2021, table 2", "row": "SVD-Padé", "final_top1_error": 43.59, "best_top1_error": 43.3}
    seeds = [trained(tmp_path / f"version_{k}", k, shift=0.02 * k, published=published) for k in range(3)]
    (group,) = groups(*seeds)
    rows = {row[1]: row[2:] for row in cells(report.results_table([group]))}
    source = "ICCV 2021, table 2, SVD-Padé"
    assert rows == {
        "top-1 error": ["47.00 ± 2.00 (min 45.00)", "42.00 ± 2.00 (min 40.00)", "final 43.59, best 43.3", source],
        "top-1 accuracy": ["53.00 ± 2.00 (max 55.00)", "58.00 ± 2.00 (max 60.00)", "final 56.41, best 56.7", source],
        "top-5 error": ["17.00 ± 2.00 (min 15.00)", "12.00 ± 2.00 (min 10.00)", "", ""],
        "top-5 accuracy": ["83.00 ± 2.00 (max 85.00)", "88.00 ± 2.00 (max 90.00)", "", ""],
    }
    table = [row[1:] for row in cells(report.runs_table([group]))]
    assert table == [[str(folder), str(k), "3", "30", "4"] for k, folder in enumerate(seeds)]
    stages = [row[1:] for row in cells(report.condition_table([group]))]
    assert stages == [["Newton-Schulz", "2e+10 ± 0"], ["warm-up", "7e+06 ± 0"], ["SVD", "20 ± 0"]]


def test_layers_and_stages_of_an_unfinished_run(tmp_path):
    tags = [f"covariance/condition_number/{layer}" for layer in ("backbone.bn1", "pooling")]
    first, second = {0: 1.0, 5: 3.0, 12: 8.0}, {0: 10.0, 5: 30.0, 12: 80.0}
    write(tmp_path, {"train/loss": {0: 1.0}, "hybrid/stage": {9: 0}, tags[0]: first, tags[1]: second})
    (group,) = groups(tmp_path)
    rows = cells(report.condition_table([group]))
    name = "/".join(tmp_path.parts[-2:])
    assert rows == [[f"{name}, backbone.bn1", "Newton-Schulz", "4"], [f"{name}, pooling", "Newton-Schulz", "40"]]
    report.main([str(tmp_path), "--output", str(tmp_path / "out")])
    assert (tmp_path / "out/condition_number.png").stat().st_size > 0


def test_the_hybrid_stages_are_marked(tmp_path):
    _, draw = FIGURES["errors"]
    training, left, right = draw(groups(trained(tmp_path / "a"), trained(tmp_path / "b", 1))).axes
    for axes in (training, left, right):
        assert [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1] == [1, 2]
        assert [text.get_text() for text in axes.texts] == ["warm-up", "SVD"]
    assert left.lines[2].get_xdata().tolist() == [1, 2, 3]  # the mean of both seeds
    assert left.lines[2].get_ydata().tolist() == pytest.approx([50, 40, 45])


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
    assert tuple(report.results_table([group]).rows[0][4:]) == published


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


def test_spikes_survive_binning():
    steps, values = np.arange(100_000.0), np.ones(100_000)
    values[[777, 54_321]] = 1e15, 1e-3
    values[70_000:71_000] = np.inf
    x, low, middle, high = binned([Curve(steps, values), Curve(steps, np.ones(100_000))])
    assert len(x) == BINS
    assert (high[1], low[108]) == (1e15, 1e-3)
    assert middle[1] == middle[108] == 1
    assert np.isnan(binned([Curve(steps, values)])[3][141])  # a gap: nothing finite there
    assert np.isfinite(high).all()


def test_epochs_go_on_after_the_last_whole_one(tmp_path):
    run = read_run(trained(tmp_path / "a"))
    assert run.epochs(np.array([-1, 4, 9, 29, 34])).tolist() == pytest.approx([0, 0.5, 1, 3, 3.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is no folder"),
        (lambda folder: folder.mkdir(), "holds no event files of TensorBoard"),
        (lambda folder: write(folder, {}), "its event files hold no scalar"),
        (lambda folder: (trained(folder) / "config.yaml").write_text("a: [b"), "config.yaml is no valid YAML"),
    ],
)
def test_bad_folders_are_one_line(make, message, tmp_path, capsys):
    make(tmp_path / "run")
    with pytest.raises(SystemExit) as end:
        report.main([str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    errors = capsys.readouterr().err.splitlines()
    assert end.value.code == 1
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {tmp_path / 'run'}")
    assert message in errors[0]


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        report.main([str(trained(tmp_path / "run")), "--output", str(tmp_path / "file")])
    assert capsys.readouterr().err.startswith(f"error: --output {tmp_path / 'file'} cannot be made (File exists)")


def test_an_empty_version_is_left_out_and_named(tmp_path, capsys):
    trained(tmp_path / "version_10")
    trained(tmp_path / "version_9", 1)
    write(tmp_path / "version_11", {})
    report.main([str(tmp_path), str(tmp_path / "version_9"), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().err == f"{tmp_path / 'version_11'}: its event files hold no scalar, left out\n"
    assert [run.folder.name for run in read_runs(tmp_path)[0]] == ["version_9", "version_10"]
    assert (tmp_path / "out/report.md").read_text().count(str(tmp_path / "version_9")) == 1


def test_plots_without_data_are_left_out(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "smoothness.png").touch()  # of an earlier report
    (out / "notes.txt").touch()
    report.main([str(trained(tmp_path / "run")), "--output", str(out)])
    assert sorted(p.name for p in out.iterdir()) == ["condition_number.png", "errors.png", "notes.txt", "report.md"]
    assert "smoothness" not in (out / "report.md").read_text()


def test_a_real_run(main, demo, tmp_path, capsys):
    callbacks = [
        {"class_path": "GradientSmoothness", "init_args": {"every_n_steps": 2, "step_lengths": [1, 10]}},
        {"class_path": "LossLandscape", "init_args": {"every_n_steps": 2, "points": 2}},
    ]
    published = {"table": "none", "row": "a | b", "top1_accuracy": 99}
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}, "published": published}))
    short = ("--trainer.limit_train_batches", 4, "--trainer.enable_progress_bar", "false")
    common = ("--config", demo, "--config", "more.yaml", "--published.top5_error", 0.5, *short)
    assert main("fit", *common, "--trainer.max_epochs", 1) == 0
    assert main("fit", *common, "--trainer.max_epochs", 2, "--ckpt_path", "last") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert main("test", *common, "--ckpt_path", "best") == 0
    report.main(["runs", "--output", "out"])
    text = Path("out/report.md").read_text()
    top1 = 100 * float(last.split()[2])
    row = next(line for line in text.splitlines() if "| top-1 accuracy " in line)
    assert float(row.split("|")[3]) == pytest.approx(top1, abs=0.01)
    assert row.split("|")[5].strip() == "99"
    assert r"none, a \| b" in row
    assert "| test top-1 error" in text
    assert "| 8 " in next(line for line in text.splitlines() if "runs/demo/version_0" in line)
    assert {p.name for p in Path("out").iterdir()} == {"report.md", "errors.png", "smoothness.png", "landscape.png"}
    assert read_run(Path("runs/demo/version_0")).curves["smoothness/beta"].steps.tolist() == [0, 2, 4, 6]
    # for the report only: checkpoints do not know of it
    for checkpoint in Path("runs/demo/version_0/checkpoints").iterdir():
        assert b"published" not in checkpoint.read_bytes()


def test_a_killed_run_is_no_sample(tmp_path, capsys):
    """Of one seed the run that went further counts, and a seed that was killed does not."""
    runs = [trained(tmp_path / "version_0"), trained(tmp_path / "version_1"), trained(tmp_path / "version_2", 1)]
    write(tmp_path / "version_3", {"val/top1": {1: 0.1}, "train/top1": {1: 0.1}, "epoch": {1: 0}})
    killed = yaml.safe_load((runs[0] / "config.yaml").read_text())
    (tmp_path / "version_3/config.yaml").write_text(yaml.safe_dump({**killed, "seed_everything": 7}))
    (group,) = group_by_experiment(read_runs(tmp_path)[0])
    assert [run.folder.name for run in group.runs] == ["version_1", "version_2"]
    left_out = capsys.readouterr().err.splitlines()
    assert [Path(line.partition(":")[0]).name for line in left_out] == ["version_0", "version_3"]


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

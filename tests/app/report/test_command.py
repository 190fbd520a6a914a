"""The command ``python -m app.report``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app.report import __main__ as report
from app.report.runs import read_run, read_runs
from tests.app.report.event_files import trained, write

ROOT = Path(__file__).parents[3]

HEAVY = {"torch", "pytorch_lightning", "lightning", "torchmetrics", "torchvision", "mpmath", "skimage", "tensorflow"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "holds no event files of TensorBoard"),
        (lambda folder: write(folder, {}), "its event files hold no scalar"),
        (lambda folder: (trained(folder) / "config.yaml").write_text("a: [b"), "config.yaml is not valid YAML"),
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
    error = capsys.readouterr().err
    assert error.startswith(f"error: --output: {tmp_path / 'file'} cannot be used as a folder: ")
    assert error.count("\n") == 1


def test_an_empty_version_is_left_out_and_named(tmp_path, capsys):
    trained(tmp_path / "version_10")
    trained(tmp_path / "version_9", 1)
    write(tmp_path / "version_11", {})
    report.main([str(tmp_path), str(tmp_path / "version_9"), "--output", str(tmp_path / "out")])
    assert capsys.readouterr().err == f"{tmp_path / 'version_11'}: its event files hold no scalar, left out\n"
    assert [run.folder.name for run in read_runs(tmp_path).runs] == ["version_9", "version_10"]
    assert (tmp_path / "out/report.md").read_text().count(str(tmp_path / "version_9")) == 1


def test_plots_without_data_are_left_out(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "smoothness.png").touch()  # of an earlier report
    (out / "notes.txt").touch()
    report.main([str(trained(tmp_path / "run")), "--output", str(out)])
    assert sorted(p.name for p in out.iterdir()) == ["condition_number.png", "errors.png", "notes.txt", "report.md"]
    assert "smoothness" not in (out / "report.md").read_text()


def test_a_damaged_file_is_named_on_the_screen_and_in_the_report(tmp_path, capsys):
    file = next(trained(tmp_path / "run").glob("events*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)
    report.main([str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert re.fullmatch(rf"{file} is damaged after step \d+, and was read up to step 28; .*\n", message)
    text = (tmp_path / "out/report.md").read_text()
    assert f"## What could not be read\n\n- {message}" in text


def test_folders_and_files_that_may_not_be_read_are_named(as_nobody, capsys):
    folder = as_nobody.folder
    for name in ("a", "b", "c", "d"):
        trained(folder / name)
    (folder / "out").mkdir()
    (folder / "out").chmod(0o777)
    (folder / "b").chmod(0)
    next((folder / "c").glob("events*")).chmod(0)
    (folder / "d").chmod(0o444)  # lists its files, and opens none
    with as_nobody:
        report.main([str(folder / "a"), str(folder), "--output", str(folder / "out")])
        with pytest.raises(SystemExit):
            report.main([str(folder / "b"), "--output", str(folder / "out")])
        with pytest.raises(SystemExit):
            report.main([str(folder / "b/none"), "--output", str(folder / "out")])
    *lines, last, missing = capsys.readouterr().err.splitlines()
    assert f"{folder / 'b'} could not be read (Permission denied), and is left out" in lines
    for name in ("c", "d"):
        assert any(line.startswith(f"{folder / name}/events") and "left out" in line for line in lines)
    assert last.startswith("error: ")
    assert f"{folder / 'b'} could not be read (Permission denied)" in last
    assert missing.startswith("error: ")
    text = (folder / "out/report.md").read_text()
    assert text.count("left out") == 4  # of d also config.yaml


def test_a_full_disk_leaves_the_earlier_report(tmp_path):
    trained(tmp_path / "run")
    command = f"{sys.executable} -m app.report {tmp_path / 'run'} --output {tmp_path / 'out'}"
    report.main([str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    trained(tmp_path / "run", meta_layer="mpn-cov")
    shell = ["bash", "-c", f"ulimit -f 20; {command}"]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert re.match(
        rf"error: {tmp_path}/out/\w+\.png cannot be written: File too large; the previous file is kept", error
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("tool", ["report RUN", "plot", "tables", "bench --sweep --batch 1 --channels 8 --positions 9"])
def test_without_a_folder_for_temporary_files_every_tool_works_or_says_so(tool, tmp_path):
    """No home, and no room for temporary files anywhere: matplotlib and torch look for some when they are imported."""
    trained(tmp_path / "run")
    command = f"{sys.executable} -m app.{tool}".replace("RUN", str(tmp_path / "run"))
    environment = {"PATH": os.environ["PATH"], "HOME": "/proc/none", "TMPDIR": "/proc/none", "PYTHONPATH": str(ROOT)}
    shell = ["bash", "-c", f"cd {tmp_path}; ulimit -f 0; exec timeout 60 {command}"]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == (done.returncode != 0)


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


def test_a_report_loads_neither_torch_nor_lightning(tmp_path):
    """Reading a thousand runs on a login node should not need the training's libraries."""
    trained(tmp_path / "run")
    code = (
        "import sys; from app.report.__main__ import main; main(sys.argv[1:])\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "out/report.md"), "[]"]
    assert (tmp_path / "out/errors.png").exists()

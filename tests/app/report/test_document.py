"""The report of runs whose names, settings and tags somebody else chose."""

import re
import warnings

import pytest
from matplotlib.figure import Figure

from app.report import __main__ as report
from app.report.document import escaped
from app.report.figures import FIGURES, MOST_PANELS, draw_all
from app.report.panels import plain
from tests.app.report.event_files import groups, trained, write

HOSTILE = {
    "formula": "$x",
    "two dollars": r"$\nonsense{$",
    "markup": "a|<script>b</script>`c`[d](e)![f](g)*h*&lt;",
    "escape sequence": "a\x1b[2J\x1b]0;owned\x07b",
    "lines": "a\n\n# b\n| c | d |\r\n",
    "long": "x" * 5000,
    "hidden from a legend": "_a",
    "other scripts": "北京 🎉 \u202e",
    "not UTF-8": "a\udce9",
    "empty": "",
    "backslashes": "\\|\\<b\\>\\$",
}


@pytest.fixture(autouse=True)
def errors_for_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_any_setting_can_be_reported(tmp_path, capsys):
    folders = []
    for number, value in enumerate(HOSTILE.values()):
        published = {"table": value, "row": value, "top1_error": value, value: 1}
        folders.append(trained(tmp_path / str(number), f"{value} {number}", value, published=published))
    report.main([*map(str, folders), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8").replace("`published`", "")
    assert not re.search(r"[^\n -~]", re.sub(r"[é±…北京🎉]", "", text))
    assert not re.search(r"(?<!\\)[<>`&*$]", text)
    assert max(map(len, text.splitlines())) < 3000
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7, 4}  # the tables have six and three columns
    assert "\x1b" not in "".join(capsys.readouterr())


def test_any_folder_can_be_reported(tmp_path, capsys):
    for number, value in enumerate(HOSTILE.values()):
        folder = tmp_path / str(number)
        write(folder, {"val/top1": {1: 0.5}, "train/top1": {1: 0.5}})
        write(folder / "empty", {})
        folder.rename(tmp_path / value.replace("/", " ")[:200].join("12"))
    report.main([str(tmp_path), "--output", str(tmp_path / "out")])
    output = "".join(capsys.readouterr())
    assert output.count("\n") == len(HOSTILE) + 1
    assert output.replace("\n", "").isprintable()
    assert (tmp_path / "out/errors.png").exists()


def test_any_tag_can_be_drawn(tmp_path):
    tags = ["val/top1", "covariance/condition_number"]
    for value in HOSTILE.values():
        value = value.encode("utf-8", "replace").decode()[:200]  # a tag is always UTF-8
        tags += [f"val/top1/{value}", f"covariance/condition_number/{value}", value]
    write(tmp_path / "run", {tag: {1: 0.5} for tag in tags})
    report.main([str(tmp_path / "run"), "--output", str(tmp_path / "out")])
    assert (tmp_path / "out/condition_number.png").exists()


VALUES = [float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 3e38, 1e-45]


@pytest.mark.parametrize("value", VALUES)
def test_any_value_can_be_reported(value, tmp_path):
    tags = [
        "epoch",
        "train/top1",
        "val/top1",
        "val/top5",
        "hybrid/stage",
        "covariance/condition_number",
        "svd/failures",
    ]
    tags += [
        "landscape/loss_min",
        "landscape/loss_max",
        "landscape/gradient_min",
        "landscape/gradient_max",
        "test/top1",
    ]
    warnings.simplefilter("ignore", RuntimeWarning)
    folders = []
    for seed in range(2):
        folders.append(tmp_path / str(seed))
        scalars = {tag: {0: value, 9: value, 2**53 - 1: value} for tag in tags}
        write(folders[-1], scalars, {"seed_everything": seed})
    report.main([*map(str, folders), "--output", str(tmp_path / "out")])
    assert (tmp_path / "out/report.md").exists()


def test_a_network_of_very_many_layers_can_be_drawn(tmp_path):
    tags = [f"covariance/condition_number/{k:04}" for k in range(300)]
    picture = draw_all(groups(write(tmp_path, {tag: {1: 2.0} for tag in tags}).parent))["condition_number.png"][1]
    width = int.from_bytes(picture[16:20], "big")
    assert width == pytest.approx(MOST_PANELS * 5.25 * 150, rel=0.01)


@pytest.mark.parametrize("text", ["$x$", "a$b", r"\$", "__", "plain"])
def test_a_text_is_drawn_as_it_is(text):
    """Matplotlib's own parser finds no formula in it."""
    figure = Figure()
    drawn = figure.text(0, 0, plain(text))
    shown, formula = drawn._preprocess_math(drawn.get_text())
    assert not formula
    assert shown.strip() == text


def test_markup_is_escaped():
    assert escaped(r"a|b <c> `d` [e](f) *g* & $h$ \h version_0") == (
        r"a\|b \<c\> \`d\` \[e\](f) \*g\* \& \$h\$ \\h version_0"
    )


def test_every_figure_has_the_name_of_its_file():
    assert all(name.endswith(".png") for name in FIGURES)

"""The Markdown pages: their links lead to files, their commands parse, and the README stays short."""

import re
import shlex

import pytest

from tests.conftest import ROOT

FOLDERS = ("app", "callbacks", "configs", "datamodules", "tests")
"""Folders with pages; environments and outputs of runs may lie beside them."""

TESTED_ELSEWHERE = ("configs/extend/README.md",)
"""Pages whose commands need the modules that they show; a test of their own runs every block."""

PLACEHOLDER, EXAMPLE = "FILE", "configs/imagenet/resnet50.yaml"
"""A configuration of the reader's, as the pages write it, and one that stands in for it."""

CELL, WIDTH, LINES = 120, 120, 200
"""Characters of a table cell and of a line of prose at most, and fewer lines than this in the README."""


def pages():
    found = set(ROOT.glob("*.md"))
    for folder in FOLDERS:
        found.update((ROOT / folder).rglob("*.md"))
    return sorted(found)


PAGES = pages()
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands():
    """Every ``python train.py`` command of the pages."""
    found = []
    for name, page in zip(NAMES, PAGES, strict=True):
        if name in TESTED_ELSEWHERE:
            continue
        for block in blocks(page.read_text(encoding="utf-8"), "sh"):
            for line in block.splitlines():
                _, separator, arguments = line.partition("python train.py ")
                if separator:
                    found.append((name, tuple(shlex.split(arguments, comments=True))))
    return found


def filled(arguments):
    """A command with existing files as its configurations: the model is not built here, so other files need not be."""
    result = []
    for flag, value in zip(("", *arguments), arguments, strict=False):
        if flag == "--config":
            value = str(ROOT / (EXAMPLE if value == PLACEHOLDER else value))
        result.append(value)
    return result


def test_there_are_pages():
    assert {"README.md", "configs/README.md", "callbacks/README.md", "app/spectral/README.md"} <= set(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(text)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = page.parent / file if file else page
        assert linked.exists(), f"{target}: there is no such file"
        if anchor:
            assert anchor in anchors(linked.read_text(encoding="utf-8")), f"{target}: there is no such heading"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < LINES


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_lines_and_cells_are_short(page):
    if page.name == "report.md":
        pytest.skip("written by a tool")
    for line in without_blocks(page.read_text(encoding="utf-8")).splitlines():
        if line.startswith("|"):
            longest = max(map(len, map(str.strip, re.split(r"(?<!\\)\|", line))))
            assert longest <= CELL, line
        elif not line.startswith("!["):
            assert len(line) <= WIDTH, line


def test_the_first_two_blocks_are_the_commands_of_a_newcomer():
    install = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python"
    first, second, *_ = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "sh")
    assert first == f"{install} train.py fit --config configs/demo.yaml\n"
    assert second == f"{install} -m pytest -n auto\n"


@pytest.mark.parametrize(("page", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_parse(page, arguments, main, capsys):
    shows_help = any(argument.endswith("help") for argument in arguments)
    extra = () if shows_help or "--print_config" in arguments else ("--print_config",)
    assert main(*filled(arguments), *extra) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_python_blocks_run(monkeypatch):
    """Those of the installed library are run by tests/test_library.py, those of the page on extensions by its test."""
    monkeypatch.syspath_prepend(ROOT)
    for name, page in zip(NAMES, PAGES, strict=True):
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            if name not in TESTED_ELSEWHERE and "covpool" not in block:
                exec(compile(block, name, "exec"), {})

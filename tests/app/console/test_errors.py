"""Errors of one line."""

import json
import subprocess
import sys

import pytest

from app.console.errors import LONGEST_LINE, describe, errors_in_one_line, fail, note, one_line
from tests.conftest import ROOT


def test_a_text_is_folded_into_one_line():
    assert one_line("a\n  b\t c\n") == "a b c"


def test_fail_prints_one_line_and_ends(capsys):
    with pytest.raises(SystemExit) as end:
        fail("a\nb", status=2)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a b [APP_TRACEBACK=1 shows more]\n"


def test_a_line_has_no_control_characters_and_an_end(capsys):
    note("a\x1b[2J\nb\x07")
    with pytest.raises(SystemExit):
        fail("x" * 100_000)
    first, second = capsys.readouterr().err.splitlines()
    assert first == r"a\x1b[2J b\x07"
    assert len(second) < LONGEST_LINE + 100


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("a\nb"), 1, "error: a b [APP_TRACEBACK=1 shows more]\n"),
        (ZeroDivisionError("a"), 1, None),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_the_errors_of_a_command_are_one_line(error, status, message, capsys, monkeypatch):
    monkeypatch.delenv("APP_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as end, errors_in_one_line():
        raise error
    assert end.value.code == status
    printed = capsys.readouterr().err
    assert printed == message or (message is None and printed.startswith("error: ZeroDivisionError at tests/"))
    monkeypatch.setenv("APP_TRACEBACK", "1")
    with pytest.raises(type(error)), errors_in_one_line():
        raise error


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize(
    ("output", "status", "message"),
    [("| head -n 1", 1, ""), ("> /dev/full", 1, "error: standard output cannot be written: No space left on device")],
)
def test_output_that_nobody_takes(output, status, message, lines):
    code = f"from app.console.errors import *\nwith errors_in_one_line():\n for k in range({lines}): print(k)"
    command = f"set -o pipefail; {sys.executable} -c '{code}' {output}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (status if lines > 1 or message else 0)
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == bool(message)


def test_an_unforeseen_error_names_its_kind_and_the_line_outside_of_libraries():
    with pytest.raises(ValueError, match="Expecting") as foreseen:
        json.loads("x")
    assert describe(foreseen.value) == "Expecting value: line 1 column 1 (char 0)"
    with pytest.raises(TypeError) as unforeseen:
        json.loads(3)
    message = describe(unforeseen.value)
    assert message.startswith("TypeError at ")
    assert "tests/app/console/test_errors.py:" in message
    assert message.endswith("not int")


def test_an_error_without_a_text_is_named():
    assert describe(ValueError()) == "ValueError"


def test_the_console_loads_no_torch():
    modules = "app.console.arguments, app.console.errors, app.console.plugins, app.console.suggestions, "
    modules += "app.console.table, app.console.threads"
    command = f"import sys, {modules}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout == "False\n"

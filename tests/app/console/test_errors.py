"""Errors of one line."""

import json
import subprocess
import sys

import pytest

from app.console.errors import describe, fail, one_line
from tests.conftest import ROOT


def test_a_text_is_folded_into_one_line():
    assert one_line("a\n  b\t c\n") == "a b c"


def test_fail_prints_one_line_and_ends(capsys):
    with pytest.raises(SystemExit) as end:
        fail("a\nb", status=2)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a b [APP_TRACEBACK=1 shows more]\n"


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

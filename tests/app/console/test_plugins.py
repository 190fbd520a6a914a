import sys

import pytest

from app.console.plugins import import_plugins


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())


def test_modules_of_the_current_folder_are_imported_in_order(tmp_path):
    (tmp_path / "first_plugin.py").write_text("import sys\nsys.first_plugin = []\n")
    (tmp_path / "second_plugin.py").write_text("import sys\nsys.first_plugin.append('second')\n")
    rest = import_plugins(["--import", "first_plugin", "fit", "--model.dim", "-1", "--import=second_plugin"])
    assert rest == ["fit", "--model.dim", "-1"]
    assert sys.first_plugin == ["second"]


def test_other_arguments_are_left_alone():
    arguments = ["fit", "--config", "a.yaml", "--help", "--important", "3"]
    assert import_plugins(arguments) == arguments


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "--import broken_plugin failed: ModuleNotFoundError: No module named 'broken_plugin'"),
        ("1 / 0", "--import broken_plugin failed: ZeroDivisionError: division by zero"),
        ("(", "--import broken_plugin failed: SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(tmp_path, capsys, source, message):
    if source is not None:
        (tmp_path / "broken_plugin.py").write_text(source)
    with pytest.raises(SystemExit) as end:
        import_plugins(["fit", "--import", "broken_plugin"])
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_an_option_without_a_module(capsys):
    with pytest.raises(SystemExit):
        import_plugins(["fit", "--import"])
    assert "error: argument --import: expected one argument" in capsys.readouterr().err

"""The configuration of a run that somebody else sent: read within bounds, or named."""

import os
import time

import pytest

from app.report.config_file import DEEPEST, LARGEST_FILE, read_config


def laughs(entry, join):
    """Nine levels of nine aliases: a billion entries in a kilobyte."""
    lines = [f"a0: &a0 {entry}"]
    for k in range(1, 10):
        lines.append(f"a{k}: &a{k} {join(f'*a{k - 1}')}")
    return "\n".join(lines)


NAMED = {
    "not YAML": ("a: [b", "is not valid YAML"),
    "not UTF-8": (b"# caf\xe9\na: 1\n", "is not valid YAML: 'utf-8' codec can't decode"),
    "control character": ("a: '\x1b[2J'", "is not valid YAML"),
    "null byte": ("a: \0", "is not valid YAML"),
    "tag of Python": ("a: !!python/object/apply:os.system ['touch owned']", "is not valid YAML"),
    "wrong timestamp": ("a: !!timestamp x", "is not valid YAML"),
    "no such day": ("a: 2001-99-99", "is not valid YAML"),
    "wrong integer": ("a: !!int x", "is not valid YAML"),
    "wrong bool": ("a: !!bool x", "is not valid YAML"),
    "key that is a list": ("? [a]\n: 1", "is not valid YAML"),
    "two documents": ("a: 1\n---\nb: 2", "is not valid YAML"),
    "undefined alias": ("a: *b", "is not valid YAML"),
    "brackets": ("[" * 100_000, "is not valid YAML: its parts are nested too deeply"),
    "lists": (
        laughs("[lol, lol]", lambda a: f"[{', '.join([a] * 9)}]"),
        "is not the configuration of a run: with its ali",
    ),
    "mappings": (
        laughs("{k: lol}", lambda a: "{" + ", ".join(f"k{j}: {a}" for j in range(9)) + "}"),
        "is not the configuration of a run: with its ali",
    ),
    "merged mappings": (
        laughs("{k: lol}", lambda a: f"{{<<: [{', '.join([a] * 9)}]}}"),
        "is not the configuration of a run: with its ali",
    ),
    "long keys": (
        f"? {'k' * 100_000}\n:\n" + "\n".join(f"  a{j}: 1" for j in range(1000)),
        "with its aliases written out",
    ),
    "itself": ("a: &a [*a]", "an alias in it stands for a part that contains the alias"),
    "chain of aliases": (
        "a0: &a0 [1]\n" + "\n".join(f"a{k}: &a{k} [*a{k - 1}]" for k in range(1, 2000)),
        f"it has more than {DEEPEST} levels",
    ),
    "long number": (f"a: {'9' * 5000}", "a number in it has more than 100 digits"),
    "long hexadecimal number": (f"a: 0x{'f' * 5000}", "a number in it has more than 100 digits"),
    "long number to the base 60": (f"a: 1{':1' * 5000}", "a number in it has more than 100 digits"),
    "large": ("a: 1\n" * (LARGEST_FILE // 5 + 1), "has more than 262144 bytes"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_file_out_of_bounds_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = NAMED[name]
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"config\.yaml ") as error:
        read_config(path)
    assert time.process_time() - begin < 10
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert len(str(error.value)) < 2000
    assert list(tmp_path.iterdir()) == [path]  # nothing was run


@pytest.mark.parametrize("text", ["", "- a", "text", "null", "3"])
def test_a_file_without_settings_is_named(text, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    assert read_config(tmp_path / "config.yaml") == (
        {},
        f"{tmp_path / 'config.yaml'} holds no settings, and is left out",
    )


def test_no_file_is_no_problem(tmp_path):
    assert read_config(tmp_path / "config.yaml") == ({}, None)


def test_aliases_of_a_usual_size_are_read(tmp_path):
    (tmp_path / "config.yaml").write_text("a: &a {x: 1, y: [2, 3]}\nb: *a\nc: {<<: *a, z: 4}\n")
    values = {"x": 1, "y": [2, 3]}
    assert read_config(tmp_path / "config.yaml") == ({"a": values, "b": values, "c": {**values, "z": 4}}, None)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_named(kind, tmp_path):
    path = tmp_path / "config.yaml"
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path.name)}
    make[kind]()
    config, problem = read_config(path)
    assert config == {}
    assert problem.startswith(f"{path} ")
    assert problem.endswith("and is left out")


def test_a_file_that_may_not_be_read_is_named(as_nobody):
    path = as_nobody.folder / "config.yaml"
    path.write_text("a: 1")
    path.chmod(0)
    with as_nobody:
        assert read_config(path) == ({}, f"{path} could not be read (Permission denied), and is left out")

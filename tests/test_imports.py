"""The direction of the imports, and what each room may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

ALLOWED = {
    "app.console": set(),
    "app.spectral": set(),
    "app.layers": {"app.spectral"},
    "app.models": {"app.console", "app.spectral", "app.layers"},
    "callbacks": {"app.console", "app.spectral", "app.layers"},
    "datamodules": {"app.console", "app.spectral", "app.layers"},
    "app.cli": {"app.console", "app.spectral", "app.layers", "app.models", "callbacks", "datamodules"},
}
"""For every room, the rooms that it may import besides itself; the commands may import all of these."""

COMMANDS = {
    "app.bench": {"app.console", "app.spectral", "app.layers", "app.models", "app.cli", "callbacks", "datamodules"},
    "app.report": {"app.console"},
    "app.tables": {"app.console", "app.spectral"},
    "app.plot": {"app.console", "app.spectral"},
}

HEAVY = ("torch", "pytorch_lightning", "mpmath", "skimage", "torchvision")


def room(module):
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "app" else parts[0]


def imported(file):
    """The modules that a file imports, relative imports resolved."""
    package = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            before = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*before, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", [*ALLOWED, *COMMANDS])
def test_imports_point_one_way(name):
    allowed = {**ALLOWED, **COMMANDS}[name] | {name}
    files = sorted((ROOT / name.replace(".", "/")).rglob("*.py"))
    assert files
    for file in files:
        ours = {
            room(module) for module in imported(file) if module.split(".")[0] in ("app", "callbacks", "datamodules")
        }
        # `callbacks/_library.py` is `covpool.callbacks._library` in the wheel, where `..layers` is a neighbour
        ours -= {"layers", "spectral"}
        assert ours <= allowed, f"{file.relative_to(ROOT)} imports {sorted(ours - allowed)}"


@pytest.mark.parametrize("name", ["app.spectral", "app.layers"])
def test_the_library_imports_torch_alone(name):
    for file in sorted((ROOT / name.replace(".", "/")).rglob("*.py")):
        foreign = {module.split(".")[0] for module in imported(file)} - set(sys.stdlib_module_names) - {"torch", "app"}
        assert not foreign, f"{file.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("module", ["app", "app.console.errors", "app.console.arguments", "app.console.table"])
def test_the_console_loads_nothing_heavy(module):
    program = f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_every_room_is_in_the_list():
    rooms = {f"app.{path.name}" for path in (ROOT / "app").iterdir() if (path / "__init__.py").is_file()}
    assert rooms | {"callbacks", "datamodules"} == {*ALLOWED, *COMMANDS}
    assert [path.name for path in Path(ROOT, "app").glob("*.py")] == ["__init__.py"]

"""Reads the ``config.yaml`` of a run, which somebody else may have sent: bounded in size, depth and time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

LARGEST_FILE = 1 << 18
"""Bytes; a configuration has some thousand."""

MOST_CHARACTERS = 1 << 20
"""Characters of all values with their keys written out, as ``model.init_args.dim``."""

DEEPEST = 60
"""Levels; a configuration has up to ten."""

LONGEST_NUMBER = 100
"""Characters of a number: the time to convert one grows with the square of its length."""


class OutOfBoundsError(ValueError):
    """Raised for a valid document that is too large or too deep to be the configuration of a run."""


class Expansion:
    """Measures a YAML document with its aliases written out, without writing them out.

    A few lines of aliases of aliases stand for more entries than there is memory for. PyYAML 6 loads them instantly,
    since an alias is the same object again (https://github.com/yaml/pyyaml/issues/235), and whoever walks the result
    never ends.

    Raises:
        OutOfBoundsError: in `measure`, for a document that is too large, too deep, or contains itself.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, int]] = {}
        self._open: set[int] = set()

    def measure(self, node: yaml.Node) -> tuple[int, int, int]:
        """Entries, characters and levels of a node."""
        if id(node) not in self._known:
            if id(node) in self._open:
                raise OutOfBoundsError("an alias in it stands for a part that contains the alias")
            if len(self._open) > DEEPEST:
                raise OutOfBoundsError(f"it has more than {DEEPEST} levels")
            self._open.add(id(node))
            self._known[id(node)] = self._measured(node)
            self._open.remove(id(node))
        return self._known[id(node)]

    def _measured(self, node: yaml.Node) -> tuple[int, int, int]:
        if isinstance(node, yaml.ScalarNode):
            is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
            if is_number and len(node.value) > LONGEST_NUMBER:
                raise OutOfBoundsError(f"a number in it has more than {LONGEST_NUMBER} digits")
            return 1, len(node.value), 0
        entries, characters, levels = 1, 0, 0
        for key, value in _children(node):
            inner, text, depth = self.measure(value)
            entries += inner
            # The key is written before every entry inside.
            characters += text + inner * key
            levels = max(levels, depth + 1)
        if levels > DEEPEST:
            raise OutOfBoundsError(f"it has more than {DEEPEST} levels")
        if entries + characters > MOST_CHARACTERS:
            raise OutOfBoundsError(f"with its aliases written out it has more than {MOST_CHARACTERS} characters")
        return entries, characters, levels


def _children(node: yaml.Node) -> list[tuple[int, yaml.Node]]:
    """The nodes inside of one, each with the length of its key; keys may be lists themselves, and count too."""
    if isinstance(node, yaml.SequenceNode):
        return [(4, value) for value in node.value]
    children = []
    for key, value in node.value:
        children += [(0, key), (len(key.value) + 1, value)]
    return children


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """The settings in a ``config.yaml``, and what is wrong with the file if it holds none.

    Raises:
        ValueError: for a file that is not valid YAML, or is out of bounds; the message names it.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would block
            return {}, f"{path} is not a file, and is left out"
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        return {}, None
    except OSError as error:
        return {}, f"{path} could not be read ({error.strerror or error}), and is left out"
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{path} has more than {LARGEST_FILE} bytes: it is not the configuration of a run")
    try:
        config = _load(data.decode("utf-8"))
    except OutOfBoundsError as error:
        raise ValueError(f"{path} is not the configuration of a run: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid YAML: its parts are nested too deeply") from error
    except Exception as error:  # PyYAML lets out what its constructors meet, such as AttributeError for !!timestamp x
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        return {}, f"{path} holds no settings, and is left out"
    return config, None


def _load(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        Expansion().measure(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()

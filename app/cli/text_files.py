"""Name a configuration file that is not text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ENDINGS = {".yaml", ".yml", ".json"}


def check_text_files(arguments: Sequence[str]) -> None:
    """Check that the configuration files on a command line are UTF-8: jsonargparse 4.53 would not name the file.

    Raises:
        ValueError: for a file that is not, with the line.
    """
    for argument in arguments:
        path = Path(argument.rpartition("=")[2])
        if path.suffix not in ENDINGS or not path.is_file():
            continue
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise ValueError(
                f"{path} is not UTF-8 text: byte {content[error.start]:#04x} in line {line}; save it as UTF-8"
            ) from error

"""Text from files and names, made fit for a terminal or a report."""

from __future__ import annotations

import reprlib


def printable(text: str) -> str:
    r"""Return a text whose control characters are written as escapes, so that a terminal does not obey them.

    Line breaks are control characters too. Bytes of a file name that are not UTF-8, and invisible characters that
    reverse the direction of the text, are escaped likewise.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    if text.isprintable():
        return text
    return "".join(_escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("ascii", "backslashreplace").decode() if ord(character) > 127 else repr(character)[1:-1]


def shortened(text: str, width: int) -> str:
    """Return a text of `width` characters at most: of a longer one the beginning and the end.

    >>> shortened("0123456789", 5)
    '01…89'
    """
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def brief(value: object, width: int = 120) -> str:
    """Return a value as one printable line of `width` characters at most, without building the whole text first.

    >>> brief(list(range(1000)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    if isinstance(value, str):
        return shortened(printable(value), width)
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 4, width, width, width
    return shortened(printable(short.repr(value)), width)

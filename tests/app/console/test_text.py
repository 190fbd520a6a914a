"""Text from files on a terminal."""

import pytest

from app.console.text import brief, printable, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Padé 北京 a/b", "Padé 北京 a/b"),
        ("a\x1b[2J\x1b]0;owned\x07b", r"a\x1b[2J\x1b]0;owned\x07b"),
        ("a\r\nb", r"a\r\nb"),
        ("\x9b31m", r"\x9b31m"),  # an escape sequence of one character
        ("a\udce9b", r"a\udce9b"),  # a byte of a file name that is not UTF-8
        ("a\u202eb", r"a\u202eb"),  # turns the text around
        ("a\U000e0041b", r"a\U000e0041b"),
        ("", ""),
    ],
)
def test_control_characters_are_escapes(text, expected):
    assert printable(text) == expected


def test_a_long_text_keeps_its_ends():
    assert shortened("0123456789", 10) == "0123456789"
    assert shortened("0123456789", 5) == "01…89"
    assert len(shortened("x" * 1000, 300)) == 300


def test_a_value_is_cut_without_building_its_text():
    value = ["lol"] * 10
    for _ in range(60):  # 2^60 entries
        value = [value, value]
    assert len(brief(value, 100)) <= 100
    assert brief("a\x1b[2J" * 10**6, 20).startswith(r"a\x1b[2Ja")
    assert brief({"a\x07": [1, 2]}) == r"{'a\x07': [1, 2]}"
    assert len(brief(10**3000, 50)) == 50

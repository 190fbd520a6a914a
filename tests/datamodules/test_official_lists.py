"""Lists as text: encodings, line ends, and every kind of a wrong line is named with its file and number."""

import re

import pytest

from datamodules import Birds
from datamodules.official_lists import DamagedListError, label_from_one, listed_file


def birds(root):
    return Birds(str(root), num_workers=0, check_counts=False)


def replaced(root, file, change):
    path = root / "CUB_200_2011" / file
    path.write_bytes(change(path.read_bytes()))
    return root


@pytest.mark.parametrize("file", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text.replace(b"\n", b"  \t\n\n"),
        lambda text: text.replace(b" ", b"\t "),
        lambda text: text.rstrip(),
    ],
    ids=["mark of UTF-8", "Windows", "old Mac", "blanks", "tabs", "no end"],
)
def test_other_systems_write_the_same(tmp_path, mini, file, change):
    mini.check(birds(replaced(mini.birds(tmp_path), file, change)), mini.expected)


def first_line(line):
    """Put another first line in place of that of a list."""
    return lambda text: line + text[text.index(b"\n") + 1 :]


WRONG = {
    "not UTF-8": ("classes.txt", lambda t: t.replace(b"bee", b"caf\xe9"), "is not a text in UTF-8: line 3 .*0xe9"),
    "UTF-16": ("images.txt", lambda t: t.decode().encode("utf-16"), "is not a text in UTF-8: line 1 .*0xff"),
    "twice": ("images.txt", lambda t: t + t.split(b"\n")[0] + b"\n", "has the number 1 twice, lines 1 and 15"),
    "a digit of another script": ("images.txt", lambda t: "²".encode() + t[1:], "line 1: expected a number and a"),
    "a huge number": ("images.txt", lambda t: b"9" * 5000 + t, "line 1: expected a number and a value"),
    "no value": ("classes.txt", lambda t: t + b"4\n", "has a line '4', line 4"),
    "control characters": ("classes.txt", lambda t: t + b"\x1b[2J\n", r"has a line '\\x1b\[2J', line 4"),
    "a label that is none": ("image_class_labels.txt", first_line(b"14 x\n"), "line 1, has the"),
    "a fraction": ("image_class_labels.txt", first_line(b"14 1.5\n"), "label '1.5', expected a"),
    "a negative label": ("image_class_labels.txt", first_line(b"14 -1\n"), "label -1, expected 1"),
    "a missing label": ("image_class_labels.txt", first_line(b""), "list different images"),
    "a third split": ("train_test_split.txt", first_line(b"14 2\n"), "line 1, has '2', expected 0 or"),
    "a class left out": ("classes.txt", lambda t: t.replace(b"3 ", b"7 "), "does not number the classes from 1 to 3"),
    "no classes": ("classes.txt", lambda t: b"", "has the label"),
    "out of the folder": ("images.txt", first_line(b"1 ../../secret.jpg\n"), "lies outside"),
    "absolute": ("images.txt", first_line(b"1 /etc/passwd\n"), "lists '/etc/passwd', which lies"),
    "a zero byte": ("images.txt", first_line(b"1 a\0b.jpg\n"), "for the name of an image"),
    "a long name": ("images.txt", first_line(b"1 " + b"a" * 9999 + b"\n"), "for the name of an"),
    "an image twice": (
        "images.txt",
        lambda t: re.sub(rb"(?m)^2 .*$", b"2 " + t.split(b"\n")[0][2:], t),
        "the lists in .* name the image .* twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path, mini, kind):
    file, change, message = WRONG[kind]
    with pytest.raises(ValueError, match=rf"^Birds: .*{message}") as caught:
        birds(replaced(mini.birds(tmp_path), file, change)).setup("fit")
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 600
    assert file in text or kind in ("no classes", "an image twice")


def test_a_list_that_is_too_large_is_not_read(tmp_path, mini):
    with (mini.birds(tmp_path) / "CUB_200_2011" / "images.txt").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="more than any list"):
        birds(tmp_path).setup("fit")


def test_a_name_that_only_python_splits(tmp_path, mini):
    root = replaced(mini.birds(tmp_path), "classes.txt", lambda text: text.replace(b"bee", "bee\x85\u2028x".encode()))
    assert birds(root).class_names[2] == "n02-bee\x85\u2028x"


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 1.5, None, [1], "1.0", "", "\uff11", "--1"])
def test_labels_that_are_not_whole_numbers(tmp_path, label):
    with pytest.raises(DamagedListError, match="expected a whole number"):
        label_from_one(label, 3, tmp_path)


@pytest.mark.parametrize("name", ["", " ", 5, None, "a/../../b", "..", "/a", "a\0"])
def test_names_that_are_not_files_of_the_folder(tmp_path, name):
    with pytest.raises(DamagedListError):
        listed_file(name, "images", tmp_path)
    assert listed_file("a/b..c.jpg", "images", tmp_path) == "images/a/b..c.jpg"

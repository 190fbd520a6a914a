"""Damaged event files: what is lost is said, and the rest is read."""

import gzip
import os
import struct
import time

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from app.report.event_files import read_event_file
from app.report.event_records import HEADER, read_records
from tests.app.report.event_files import write

TAG = "train/loss"


@pytest.fixture
def file(tmp_path):
    """An event file of 50 steps."""
    return write(tmp_path, {TAG: {step: step for step in range(50)}})


def starts(file):
    """Where the records begin; the first names the version of the format, and record k + 1 holds step k."""
    data, places = file.read_bytes(), [0]
    while places[-1] < len(data):
        (length,) = struct.unpack_from("<Q", data, places[-1])
        places.append(places[-1] + HEADER + length + 4)
    return places


def flip(file, *places):
    data = bytearray(file.read_bytes())
    for place in places:
        data[place] ^= 16
    file.write_bytes(data)


def steps(found):
    return found.curves[TAG].steps.tolist()


def record(data):
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checksums[0] + data + checksums[1]


def test_a_whole_file_has_no_problem(file):
    found = read_event_file(file)
    assert found.problem is None
    assert steps(found) == list(range(50))


@pytest.mark.parametrize("place", [0, 7, 8, 11, HEADER, HEADER + 12, -1], ids=str)
def test_one_record_is_lost_wherever_its_bit_is_flipped(file, place):
    """In the length, its checksum, the data or their checksum."""
    begin, end = starts(file)[21:23]
    flip(file, end - 1 if place < 0 else begin + place)
    found = read_event_file(file)
    assert found.problem == (
        f"{file} is damaged after step 19, and was read up to step 49; what was logged there is missing"
    )
    assert steps(found) == [step for step in range(50) if step != 20]


def test_several_places(file):
    flip(file, *(starts(file)[k] + 14 for k in (1, 11, 50)))
    found = read_event_file(file)
    assert "is damaged in 3 places, first before its first step, and was read up to step 48" in found.problem
    assert steps(found) == [*range(1, 10), *range(11, 49)]


@pytest.mark.parametrize("change", ["removed", "inserted", "zeroed"])
def test_blocks_that_shift_or_blank_the_rest(file, change):
    data, begin = file.read_bytes(), starts(file)[21] + 5
    rest = {
        "removed": data[begin + 100 :],
        "inserted": bytes(333) + data[begin:],
        "zeroed": bytes(100) + data[begin + 100 :],
    }
    file.write_bytes(data[:begin] + rest[change])
    found = read_event_file(file)
    assert "is damaged " in found.problem
    assert "after step 19, and was read up to step 49" in found.problem
    assert {*range(20), *range(24, 50)} <= set(steps(found))


@pytest.mark.parametrize("missing", [1, 4, 5, 20, 30])
def test_a_record_that_is_cut_short_is_no_damage(file, missing):
    os.truncate(file, file.stat().st_size - missing)
    found = read_event_file(file)
    assert found.problem is None
    assert steps(found) == list(range(49))


def test_the_end_blanked_by_a_power_failure(file):
    data = file.read_bytes()
    file.write_bytes(data + bytes(4096))
    found = read_event_file(file)
    assert "is damaged after step 49, and was read up to step 49" in found.problem
    assert steps(found) == list(range(50))


@pytest.mark.parametrize(
    "data", [gzip.compress(b"x" * 9999), b"<html>" * 99, bytes(9999)], ids=["compressed", "text", "zeros"]
)
def test_a_foreign_file_is_named(tmp_path, data):
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(data)
    found = read_event_file(path)
    assert found.curves == {}
    assert found.problem.startswith(f"{path} could not be read: it is damaged from its beginning, or is not an event")


def test_an_empty_file_is_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "events.out.tfevents.1").touch()
    assert read_event_file(tmp_path / "events.out.tfevents.1").problem is None


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling"])
def test_what_is_no_file_is_named(tmp_path, kind):
    path = tmp_path / "events.out.tfevents.1"
    make = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path.name),
        "dangling": lambda: path.symlink_to("none"),
    }
    make[kind]()
    assert read_event_file(path).problem == f"{path} is not a file that can be read, and is left out"


def test_checksums_that_are_right_for_data_that_are_not(file):
    """Somebody may have made the file by hand."""
    event = Event(step=-5)
    event.summary.value.add(tag=TAG, simple_value=1.0)
    made = [b"\xff\xff\xff", event.SerializeToString()]
    event.step = 2**60
    made.append(event.SerializeToString())
    with file.open("ab") as stream:
        for data in made:
            stream.write(record(data))
    found = read_event_file(file)
    assert "is damaged in 3 places, first after step 49" in found.problem
    assert steps(found) == list(range(50))


@pytest.mark.parametrize("length", [2**62, 100_000], ids=["longer than any file", "overlapping"])
def test_lengths_that_are_made_up_end(file, length):
    """Each of the headers claims a record that must be read whole, to find that its checksum is wrong."""
    header = struct.pack("<Q", length)
    header += struct.pack("<I", masked_crc32c(header))
    with file.open("ab") as stream:
        stream.write(header * 20_000)
    begin = time.process_time()
    with file.open("rb") as stream:
        found = list(read_records(stream))
    assert time.process_time() - begin < 10
    assert sum(one is not None for one in found) == 51
    assert None in found


def test_a_file_that_may_not_be_read_is_named(as_nobody):
    path = write(as_nobody.folder, {TAG: {0: 1.0}})
    path.chmod(0)
    with as_nobody:
        assert read_event_file(path).problem == f"{path} could not be read (Permission denied), and is left out"

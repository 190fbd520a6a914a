"""Reads the records of an event file, even of a damaged one.

A record is its length (8 bytes), the checksum of the length (4), the data, and the checksum of the data (4), in little
endian. TensorBoard's own reader (2.21) ends at the first wrong checksum as if it were the end of the file
(https://github.com/tensorflow/tensorboard/pull/3194 says why), so that everything after it would be silently missing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE, masked_crc32c

LENGTH, CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
HEADER = LENGTH.size + CHECKSUM.size

MASK = 0xA282EAD8
"""Added to every checksum, after a rotation by 15 bits."""

FIRST_BLOCK, LARGEST_BLOCK = 1 << 12, 1 << 20
"""Bytes that are searched at a time: the next record is usually near."""


def read_records(file: BinaryIO) -> Iterator[bytes | None]:
    """The data of each record of an event file, and ``None`` for each damaged place.

    After a damaged place, the next record is searched for. A last record that is cut short is left out, since a run
    that was killed ends like that.
    """
    end = os.fstat(file.fileno()).st_size
    claimed = 0
    while end - file.tell() >= HEADER:
        start = file.tell()
        length = _read_length(file)
        if length is not None:
            record = _read_data(file, length, end)
            if record is not None:
                yield record
                continue
            claimed += length
        following = _next_header(file, start + 1)
        is_cut_short = length is not None and start + HEADER + length + CHECKSUM.size > end
        if following is None and is_cut_short:
            return
        yield None
        # Damaged records that take up more room than the file has must overlap, and were crafted to be read forever.
        if following is None or claimed > 2 * end:
            return
        file.seek(following)


def _read_length(file: BinaryIO) -> int | None:
    """The length of the record that begins here; ``None`` if its checksum is wrong."""
    length = file.read(LENGTH.size)
    (checksum,) = CHECKSUM.unpack(file.read(CHECKSUM.size))
    if masked_crc32c(length) != checksum:
        return None
    return int(LENGTH.unpack(length)[0])


def _read_data(file: BinaryIO, length: int, end: int) -> bytes | None:
    """The data of a record; ``None`` if it does not fit into the file or its checksum is wrong."""
    if file.tell() + length + CHECKSUM.size > end:
        return None
    data = file.read(length)
    (checksum,) = CHECKSUM.unpack(file.read(CHECKSUM.size))
    if masked_crc32c(data) != checksum:
        return None
    return data


def _next_header(file: BinaryIO, start: int) -> int | None:
    """The first place at or after `start` that has a length and its checksum."""
    size = FIRST_BLOCK
    while True:
        file.seek(start)
        block = np.frombuffer(file.read(size), np.uint8)
        if len(block) < HEADER:
            return None
        found = np.flatnonzero(_is_header(block))
        if len(found):
            return start + int(found[0])
        start += len(block) - HEADER + 1
        size = min(2 * size, LARGEST_BLOCK)


def _is_header(block: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether a length and its checksum begin at each byte but the last eleven: the CRC-32C of all windows at once."""
    table = np.array(CRC_TABLE, np.uint32)
    windows = len(block) - HEADER + 1
    crc = np.full(windows, 0xFFFFFFFF, np.uint32)
    for k in range(LENGTH.size):
        crc = table[(crc ^ block[k : k + windows]) & 0xFF] ^ (crc >> 8)
    crc = ~crc
    expected = ((crc >> 15) | (crc << 17)) + np.uint32(MASK)
    stored = np.zeros(windows, np.uint32)
    for k in range(CHECKSUM.size):
        place = LENGTH.size + k
        stored |= block[place : place + windows].astype(np.uint32) << (8 * k)
    return expected == stored

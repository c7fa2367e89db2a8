"""RecordIO: the framing of Pipe channels (RecordWrapperType), batch transform (SplitType) and MXNet's `.rec` files.

A record is the magic number, a length word, the payload and zero to three bytes of padding, all words little-endian.
The length word's three top bits say whether the record is whole or part of a longer one. dmlc-core's writer splits a
payload where it contains the magic number itself, on a multiple of four, and leaves those four bytes out; a reader puts
them back between the parts (dmlc-core, src/recordio.cc).
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
LENGTH_BITS = 29
LENGTH_MASK = (1 << LENGTH_BITS) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)  # continuation flags

_HEADER = struct.Struct("<II")
_CONTINUES = (False, False, True, True, None, None, None, None)  # by flag: whether parts come before; None: no flag


class RecordIOError(ValueError):
    """The bytes are damaged RecordIO, or they end within a record."""


class NoRecordIO(RecordIOError):
    """What should be a record starts with something else."""


def read_records(stream: BinaryIO) -> Iterator[bytes]:
    """The payloads of a RecordIO stream, one at a time, each handed out before the next one is waited for.

    Args:
        stream: buffered: `read(n)` gives fewer than n bytes only at the end.

    Raises:
        RecordIOError: a wrong magic number, a part without its beginning or end, or an end inside a record.
    """
    read, unpack, header_bytes = stream.read, _HEADER.unpack_from, _HEADER.size  # small records feel every look-up
    parts: list[bytes] = []
    number = offset = padding = 0
    while True:
        header = read(padding + header_bytes)
        if len(header) < padding + header_bytes:
            if len(header) == padding and not parts:
                return
            raise _truncated(number, offset + len(header))
        magic, word = unpack(header, padding)
        length, flag = word & LENGTH_MASK, word >> LENGTH_BITS
        if magic != MAGIC or _CONTINUES[flag] is not bool(parts):
            raise _damaged(number, offset + padding, magic, flag)
        offset += len(header) + length
        payload = read(length)
        if len(payload) < length:
            raise _truncated(number, offset - length + len(payload))
        padding = -length & 3
        if flag:
            parts.append(payload)
            if flag != LAST:
                continue
            payload, parts = MAGIC_BYTES.join(parts), []
        yield payload
        number += 1


def frame(payload: bytes) -> bytes:
    """One whole record. A payload that holds the magic number is not split: AWS's own readers go by the length."""
    return _HEADER.pack(MAGIC, len(payload)) + payload + bytes(-len(payload) % 4)


def _truncated(number: int, end: int) -> RecordIOError:
    return RecordIOError(f"RecordIO ends at byte {end}, inside of a record, after {number} records")


def _damaged(number: int, offset: int, magic: int, flag: int) -> RecordIOError:
    if magic == MAGIC:
        return RecordIOError(f"record {number} at byte {offset}: continuation flag {flag} cannot stand here")
    return NoRecordIO(f"record {number} at byte {offset} starts with {magic:#010x}, not with RecordIO's {MAGIC:#010x}")

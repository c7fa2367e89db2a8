"""Splitting a transform's input objects into request bodies, and assembling the answers. Pure functions over bytes."""

import struct
from collections.abc import Iterable, Iterator, Sequence

RECORDIO_MAGIC = 0xCED7230A
RECORDIO_LENGTH_MASK = (1 << 29) - 1  # the top three bits are a continuation flag


class RecordError(Exception):
    """The input is not framed as SplitType says, or a record is larger than MaxPayloadInMB."""


def split(content: bytes, split_type: str) -> list[bytes]:
    """The records of one object, framing kept; with `None` the whole object is one record.

    Raises:
        RecordError: not framed as `split_type` says.
    """
    if split_type == "Line":
        *lines, last = content.split(b"\n")
        return [line + b"\n" for line in lines] + ([last] if last else [])
    if split_type == "RecordIO":
        return list(_recordio(content))
    if split_type == "TFRecord":
        return list(_tfrecord(content))
    return [content]


def _recordio(content: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(content):
        if len(content) < offset + 8:
            raise RecordError("RecordIO: the data end inside a record's head")
        magic, word = struct.unpack_from("<II", content, offset)
        if magic != RECORDIO_MAGIC:
            raise RecordError(f"RecordIO: magic number {magic:#x} at byte {offset} is not {RECORDIO_MAGIC:#x}")
        length = word & RECORDIO_LENGTH_MASK
        end = offset + 8 + length + (-length) % 4
        if end > len(content):
            raise RecordError(f"RecordIO: the record at byte {offset} says {length} bytes, and the data end before")
        yield content[offset:end]
        offset = end


def _tfrecord(content: bytes) -> Iterator[bytes]:
    offset = 0  # length (8), its CRC (4), data, CRC of the data (4)
    while offset < len(content):
        if len(content) < offset + 12:
            raise RecordError("TFRecord: the data end inside a record's head")
        (length,) = struct.unpack_from("<Q", content, offset)
        end = offset + 16 + length
        if end > len(content):
            raise RecordError(f"TFRecord: the record at byte {offset} says {length} bytes, and the data end before")
        yield content[offset:end]
        offset = end


def unframe(record: bytes, split_type: str) -> bytes:
    """A record as it is sent alone: without padding and framing; a line without its end."""
    if split_type == "RecordIO":
        (word,) = struct.unpack_from("<I", record, 4)
        return record[8 : 8 + (word & RECORDIO_LENGTH_MASK)]
    if split_type == "TFRecord":
        return record[12:-4]
    if split_type == "Line":
        return record.removesuffix(b"\n").removesuffix(b"\r")
    return record


def groups(records: Iterable[bytes], split_type: str, strategy: str, limit_bytes: int) -> Iterator[list[bytes]]:
    """Which records travel in one request: each alone, or as many whole ones as fit.

    Args:
        records: with their framing, as `split` returns them.
        split_type: SplitType of the job.
        strategy: `SingleRecord` or `MultiRecord`.
        limit_bytes: MaxPayloadInMB in bytes; 0 is no limit.

    Raises:
        RecordError: one record alone is larger than the limit.
    """
    goes_alone = strategy == "SingleRecord" or split_type == "None"
    group: list[bytes] = []
    size = 0
    for record in records:
        if limit_bytes and len(record) > limit_bytes:
            raise RecordError(
                f"a record of {len(record)} bytes is larger than MaxPayloadInMB ({limit_bytes // 2**20}); "
                "raise MaxPayloadInMB (at most 100) or split the input"
            )
        if group and (goes_alone or (limit_bytes and size + len(record) > limit_bytes)):
            yield group
            group, size = [], 0
        group.append(record)
        size += len(record)
    if group:
        yield group


def request_body(group: Sequence[bytes], split_type: str, strategy: str) -> bytes:
    """The body for a group: a single record without its framing, several with it."""
    if strategy == "SingleRecord" or split_type == "None":
        return unframe(group[0], split_type)
    return b"".join(group)


def assemble(answers: Iterable[bytes], assemble_with: str) -> bytes:
    """The output object: answers in input order; `Line` ends each with a newline."""
    end = b"\n" if assemble_with == "Line" else b""
    return b"".join(answer + end for answer in answers)

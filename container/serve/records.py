"""RecordIO with SageMaker's protobuf records, and TFRecord with Examples: bodies of batch transform's binary splits.

`SplitType: RecordIO` and `TFRecord` send several records with their framing (`BatchStrategy: MultiRecord`) or one
without padding (`SingleRecord`: "TransformInput"). Whether that one still has its framing is not documented: both are
read. TFRecord: length (8 bytes), its CRC-32C, the data, theirs; the CRCs masked (TensorFlow, "TFRecord and
tf.train.Example").
"""

import io
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import google_crc32c
import numpy as np

from container.recordio import MAGIC_BYTES, RecordIOError, frame, read_records
from container.serve.codec import JSON, RECORDIO
from container.serve.exchange import BadRequest, NotAcceptable
from container.serve.record_messages import Features, check_size, read_example, read_record, write_record

# Which feature a model is fed with where a record has several: the algorithms' name first, then what people write.
INPUT_NAMES = ("values", "features", "inputs", "x", "image/encoded", "image")
CRC_MASK = 0xA282EAD8
_LENGTH = struct.Struct("<QI")
_CRC = struct.Struct("<I")


def decode(body: bytes, kind: str) -> "np.ndarray | list[bytes]":
    """What the model is fed with, of all records: an array [records, …], or encoded files such as images.

    Raises:
        BadRequest: damaged framing or CRC, messages of another kind, or records that do not make one array.
    """
    return _column((_features(payload, number, kind) for number, payload in payloads(body, kind)), len(body))


def value_of(payload: bytes, number: int, kind: str) -> "np.ndarray | list[bytes]":
    """What the model is fed with of one record, the `number`th.

    Raises:
        BadRequest: a message of another kind, or nothing says which of its features is meant.
    """
    features = _features(payload, number, kind)
    return features[_input_name(features, number)]


def _features(payload: bytes, number: int, kind: str) -> Features:
    return read_record(payload, number) if kind == RECORDIO else read_example(payload, number)


def payloads(body: bytes, kind: str) -> Iterator[tuple[int, bytes]]:
    """The records of a body, counted from 1, out of their framing.

    Raises:
        BadRequest: damaged framing or CRC.
    """
    body = bytes(body)
    return enumerate(_recordio(body) if kind == RECORDIO else _tfrecords(body), 1)


def encode(rows: Iterable[Any]) -> bytes:
    """An answer as RecordIO: a record for each row; a row that is no object is its label `values`.

    Raises:
        NotAcceptable: a row is neither numbers nor an object of numbers and texts.
    """
    try:
        labels = (row if isinstance(row, dict) else {"values": row} for row in rows)
        return b"".join(frame(write_record(label)) for label in labels)
    except (TypeError, ValueError) as error:
        raise NotAcceptable(f"this answer has no form as {RECORDIO}: {error}", known=[JSON]) from None


def _recordio(body: bytes) -> Iterator[bytes]:
    if not body.startswith(MAGIC_BYTES):
        yield from [body] if body else []
        return
    try:
        yield from read_records(io.BytesIO(body + bytes(-len(body) % 4)))  # a single one comes without its padding
    except RecordIOError as error:
        raise BadRequest(str(error)) from None


def _is_framed(body: bytes) -> bool:
    return len(body) >= _LENGTH.size and _LENGTH.unpack_from(body)[1] == masked_crc(body[:8])


def _tfrecords(body: bytes) -> Iterator[bytes]:
    if body and not _is_framed(body):
        yield _bare_example(body)
        return
    offset, number = 0, 1
    while offset < len(body):
        where = f"TFRecord {number} at byte {offset}"
        if len(body) < offset + _LENGTH.size:
            raise BadRequest(f"{where}: the body ends inside of its head")
        length, crc = _LENGTH.unpack_from(body, offset)
        if crc != masked_crc(body[offset : offset + 8]):
            raise BadRequest(f"{where}: the CRC of its length is wrong")
        start, end = offset + _LENGTH.size, offset + _LENGTH.size + length
        if len(body) < end + _CRC.size:
            raise BadRequest(f"{where} says {length} bytes, and the body ends before")
        payload = body[start:end]
        if _CRC.unpack_from(body, end)[0] != masked_crc(payload):
            raise BadRequest(f"{where}: the CRC of its data is wrong")
        yield payload
        offset, number = end + _CRC.size, number + 1


def _bare_example(body: bytes) -> bytes:
    """A single Example without its framing, which is as good a guess as a framing that is damaged."""
    try:
        read_example(body, 1)
    except BadRequest as error:
        raise BadRequest(
            f"the body does not start with a TFRecord's length and CRC, and is no Example: {error}"
        ) from None
    return body


def masked_crc(data: bytes) -> int:
    """TFRecord's CRC-32C: rotated and shifted, so that a CRC of data that hold CRCs stays a good one."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + CRC_MASK) & 0xFFFFFFFF


def _column(records: Iterable[Features], sent: int) -> "np.ndarray | list[bytes]":
    """The one feature the model is fed with, of all records, which came in so many bytes."""
    values: list[np.ndarray] = []
    files: list[bytes] = []
    name, size = "", 0
    for number, features in enumerate(records, 1):
        name = name or _input_name(features, number)
        value = features.get(name)
        if value is None:
            raise BadRequest(f"record {number} has no feature {name!r}; it has {sorted(features)}")
        if isinstance(value, list):
            files += value
            continue
        size += value.nbytes
        check_size(size, sent, f"the first {number} records")
        values.append(value)
        if value.shape != values[0].shape:
            raise BadRequest(f"record {number} has shape {list(value.shape)}, record 1 has {list(values[0].shape)}")
    if values and files:
        raise BadRequest(f"feature {name!r} holds numbers in some records and bytes in others")
    if not values and not files:
        raise BadRequest("the body holds no records")
    return np.stack(values) if values else files


def _input_name(features: Features, number: int) -> str:
    if len(features) == 1:
        return next(iter(features))
    for name in INPUT_NAMES:
        if name in features:
            return name
    if not features:
        raise BadRequest(f"record {number} has no features")
    raise BadRequest(
        f"record {number}: which feature is the input? None of {sorted(features)} is named {', '.join(INPUT_NAMES)}"
    )

"""Bodies of batch transform's binary splits: RecordIO with SageMaker's protobuf records, and TFRecord with Examples.

`SplitType: RecordIO` and `TFRecord` send several records with their framing (`BatchStrategy: MultiRecord`) or one
without padding (`SingleRecord`: "TransformInput"). Whether that one still has its framing is not documented: both are
read. TFRecord: length (8 bytes), its CRC-32C, the data, theirs; the CRCs masked (TensorFlow, "TFRecord and
tf.train.Example").
"""

import io
import struct
from collections.abc import Callable, Iterator

import google_crc32c
import numpy as np

from container.recordio import MAGIC_BYTES, RecordIOError, read_records
from container.serve.exchange import BadRequest
from container.serve.record_messages import DENSE_LIMIT_BYTES, Features, read_example, read_record

# Which feature a model is fed with where a record has several: the algorithms' name first, then what people write.
INPUT_NAMES = ("values", "features", "inputs", "x", "image/encoded", "image")
CRC_MASK = 0xA282EAD8
_LENGTH = struct.Struct("<QI")
_CRC = struct.Struct("<I")


def decode_recordio(body: bytes) -> "np.ndarray | list[bytes]":
    """What the model is fed with, of each record: an array [records, …], or encoded files such as images.

    Raises:
        BadRequest: damaged framing, messages of another kind, or records that do not make one array.
    """
    body = bytes(body)
    if not body.startswith(MAGIC_BYTES):
        return _column(iter([body] if body else []), read_record)
    padded = body + bytes(-len(body) % 4)  # a single record comes without its padding
    try:
        return _column(read_records(io.BytesIO(padded)), read_record)
    except RecordIOError as error:
        raise BadRequest(str(error)) from None


def decode_tfrecord(body: bytes) -> "np.ndarray | list[bytes]":
    """What the model is fed with, of each Example: an array [records, values], or encoded files such as images.

    Raises:
        BadRequest: damaged framing or CRC, messages of another kind, or records that do not make one array.
    """
    body = bytes(body)
    if body and not _is_framed(body):
        try:
            return _column(iter([body]), read_example)
        except BadRequest as error:
            raise BadRequest(
                f"the body does not start with a TFRecord's length and CRC, and is no Example: {error}"
            ) from None
    return _column(_tfrecords(body), read_example)


def _is_framed(body: bytes) -> bool:
    return len(body) >= _LENGTH.size and _LENGTH.unpack_from(body)[1] == masked_crc(body[:8])


def _tfrecords(body: bytes) -> Iterator[bytes]:
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


def masked_crc(data: bytes) -> int:
    """TFRecord's CRC-32C: rotated and shifted, so that a CRC of data that hold CRCs stays a good one."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + CRC_MASK) & 0xFFFFFFFF


def _column(payloads: Iterator[bytes], read: Callable[[bytes, int], Features]) -> "np.ndarray | list[bytes]":
    """The one feature the model is fed with, of all records."""
    values: list[np.ndarray] = []
    files: list[bytes] = []
    name, size = "", 0
    for number, payload in enumerate(payloads, 1):
        features = read(payload, number)
        name = name or _input_name(features)
        value = features.get(name)
        if value is None:
            raise BadRequest(f"record {number} has no feature {name!r}; it has {sorted(features)}")
        if isinstance(value, list):
            files += value
            continue
        size += value.nbytes
        if size > DENSE_LIMIT_BYTES:
            raise BadRequest(f"the first {number} records take more than {DENSE_LIMIT_BYTES} bytes; send fewer")
        values.append(value)
        if value.shape != values[0].shape:
            raise BadRequest(f"record {number} has shape {list(value.shape)}, record 1 has {list(values[0].shape)}")
    if values and files:
        raise BadRequest(f"feature {name!r} holds numbers in some records and bytes in others")
    if not values and not files:
        raise BadRequest("the body holds no records")
    return np.stack(values) if values else files


def _input_name(features: Features) -> str:
    if len(features) == 1:
        return next(iter(features))
    for name in INPUT_NAMES:
        if name in features:
            return name
    if not features:
        raise BadRequest("the first record has no features")
    raise BadRequest(
        f"which feature is the model's input? None of {sorted(features)} is named {', '.join(INPUT_NAMES)}"
    )

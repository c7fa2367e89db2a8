"""The protobuf messages inside RecordIO and TFRecord, as arrays: SageMaker's `Record` and TensorFlow's `Example`.

The protobuf runtime reads the wire format; the messages are declared here, in a pool of their own, so that user code
may import the toolkit's or TensorFlow's declarations of the same names beside them.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from container.serve.exchange import BadRequest

Features = dict[str, "np.ndarray | list[bytes]"]
"""One record: what its features hold, by name."""

DIMENSIONS_LIMIT = 63  # numpy has 64, and several records together need one more
DENSE_LIMIT_BYTES = 128 * 1024**2  # a sparse record of a few bytes may announce any width
WIDENING = 8  # so many bytes an array has for each of a dense tensor's at most: a varint of one byte, an int64
PACKAGE = "slipway.records"
REPEATED, ONE_OF = "repeated", "one of"
# Message -> field -> (number, type, how). A map is on the wire what a repeated message of key and value is.
# Sources: "Common Data Formats for Training" (record.proto), tensorflow/core/example (example.proto, feature.proto).
SCHEMA: dict[str, dict[str, tuple[int, str, str]]] = {
    "Float32Tensor": {
        "values": (1, "float", REPEATED),
        "keys": (2, "uint64", REPEATED),
        "shape": (3, "uint64", REPEATED),
    },
    "Float64Tensor": {
        "values": (1, "double", REPEATED),
        "keys": (2, "uint64", REPEATED),
        "shape": (3, "uint64", REPEATED),
    },
    "Int32Tensor": {
        "values": (1, "int32", REPEATED),
        "keys": (2, "uint64", REPEATED),
        "shape": (3, "uint64", REPEATED),
    },
    "Bytes": {"value": (1, "bytes", REPEATED), "content_type": (2, "string", "")},
    "Value": {
        "float32_tensor": (2, "Float32Tensor", ONE_OF),
        "float64_tensor": (3, "Float64Tensor", ONE_OF),
        "int32_tensor": (7, "Int32Tensor", ONE_OF),
        "bytes": (9, "Bytes", ONE_OF),
    },
    "ValueEntry": {"key": (1, "string", ""), "value": (2, "Value", "")},
    "Record": {"features": (1, "ValueEntry", REPEATED), "label": (2, "ValueEntry", REPEATED)},
    "BytesList": {"value": (1, "bytes", REPEATED)},
    "FloatList": {"value": (1, "float", REPEATED)},
    "Int64List": {"value": (1, "int64", REPEATED)},
    "Feature": {
        "bytes_list": (1, "BytesList", ONE_OF),
        "float_list": (2, "FloatList", ONE_OF),
        "int64_list": (3, "Int64List", ONE_OF),
    },
    "FeatureEntry": {"key": (1, "string", ""), "value": (2, "Feature", "")},
    "FeatureMap": {"feature": (1, "FeatureEntry", REPEATED)},
    "Example": {"features": (1, "FeatureMap", "")},
}
DTYPES = {"float32_tensor": np.float32, "float64_tensor": np.float32, "int32_tensor": np.int32}  # as JSON's floats


@cache
def _message(name: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="slipway/records.proto", package=PACKAGE, syntax="proto2")
    for message_name, fields in SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for field_name, (number, kind, how) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_REPEATED if how == REPEATED else field.LABEL_OPTIONAL
            if kind in SCHEMA:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
            if how == ONE_OF:
                field.oneof_index = 0
        if any(how == ONE_OF for _, _, how in fields.values()):
            message.oneof_decl.add(name="kind")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def _parse(name: str, payload: bytes, number: int) -> Any:
    try:
        return _message(name).FromString(payload)
    except DecodeError:
        raise BadRequest(f"record {number} ({len(payload)} bytes) is no protobuf message {name}") from None


def read_record(payload: bytes, number: int) -> Features:
    """The features of one SageMaker `Record`; labels are no business of a model that predicts them.

    Args:
        payload: the message.
        number: of the record in the caller's body, for messages to the caller.

    Raises:
        BadRequest: no such message, or a tensor whose shape and values disagree.
    """
    features: Features = {}
    size = 0
    for entry in _parse("Record", payload, number).features:
        kind = entry.value.WhichOneof("kind")
        if kind == "bytes":
            features[entry.key] = list(entry.value.bytes.value)
        elif kind:
            array = _tensor(getattr(entry.value, kind), DTYPES[kind], f"record {number}, {entry.key!r}")
            size += array.nbytes
            check_size(size, len(payload), f"the features of record {number}")
            features[entry.key] = array
    return features


def check_size(size: int, sent: int, what: str) -> None:
    """Refuse sparse tensors that say they are wide, one after another.

    Args:
        size: bytes of the arrays so far.
        sent: bytes of the messages they come from.
        what: they are, for the message to the caller.

    Raises:
        BadRequest: over `DENSE_LIMIT_BYTES`, and more than dense tensors could have made of what was sent.
    """
    if size > max(DENSE_LIMIT_BYTES, WIDENING * sent):
        raise BadRequest(f"{what} take more than {DENSE_LIMIT_BYTES} bytes; send fewer")


def _tensor(tensor: Any, dtype: type, where: str) -> np.ndarray:
    """Dense or sparse values: a sparse tensor has keys, the places of its values in the flattened shape."""
    values: np.ndarray = np.fromiter(tensor.values, dtype, len(tensor.values))
    shape = list(tensor.shape)
    if not shape:
        if tensor.keys:
            raise BadRequest(f"{where}: sparse values (with keys) need a shape")
        return values
    if len(shape) > DIMENSIONS_LIMIT:  # before they are multiplied: the product of very many takes minutes
        raise BadRequest(f"{where}: {len(shape)} dimensions; an array can have {DIMENSIONS_LIMIT}")
    size = math.prod(shape)
    if not tensor.keys and len(values):
        if size != len(values):
            raise BadRequest(f"{where}: shape {shape} does not hold {len(values)} values")
        return _shaped(values, shape, where)
    if size * values.itemsize > DENSE_LIMIT_BYTES:
        raise BadRequest(f"{where}: shape {shape} takes more than {DENSE_LIMIT_BYTES} bytes")
    keys = np.array(tensor.keys, np.uint64)
    if len(keys) != len(values) or (keys >= size).any():
        raise BadRequest(f"{where}: {len(keys)} keys for {len(values)} values, or one outside of shape {shape}")
    dense = np.zeros(size, dtype)
    dense[keys.astype(np.int64)] = values
    return _shaped(dense, shape, where)


def _shaped(values: np.ndarray, shape: list[int], where: str) -> np.ndarray:
    try:
        return values.reshape(shape)
    except (ValueError, OverflowError):  # beside a zero an extent larger than an array can have
        raise BadRequest(f"{where}: no array can have the shape {shape}") from None


def write_record(labels: Mapping[str, Any]) -> bytes:
    """A SageMaker `Record` whose labels are what was predicted, as its built-in algorithms answer.

    Args:
        labels: name -> a number, an array of numbers, a text or bytes, or a list of these.

    Raises:
        TypeError: a value is none of them.
    """
    record = _message("Record")()
    for name, value in labels.items():
        entry = record.label.add(key=str(name))
        texts = [value] if isinstance(value, str | bytes) else value
        if isinstance(texts, list) and texts and all(isinstance(text, str | bytes) for text in texts):
            entry.value.bytes.value.extend(text.encode() if isinstance(text, str) else text for text in texts)
            continue
        array = np.asarray(np.nan if value is None else value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name!r} is neither numbers nor text")
        tensor = getattr(entry.value, _tensor_kind(array))
        tensor.values.extend(array.ravel().tolist())
        if array.ndim > 1:
            tensor.shape.extend(array.shape)
    return record.SerializeToString()


def _tensor_kind(array: np.ndarray) -> str:
    """The narrowest of the three tensors that holds the numbers."""
    if array.dtype.kind == "f":
        return "float64_tensor" if array.dtype.itemsize > 4 else "float32_tensor"
    int32 = np.iinfo(np.int32)
    fits = not array.size or (array.min() >= int32.min and array.max() <= int32.max)
    return "int32_tensor" if fits else "float64_tensor"


def read_example(payload: bytes, number: int) -> Features:
    """The features of one TensorFlow `Example`: lists, because its message has no shapes.

    Args:
        payload: the message.
        number: of the record in the caller's body, for messages to the caller.

    Raises:
        BadRequest: no such message.
    """
    features: Features = {}
    for entry in _parse("Example", payload, number).features.feature:
        kind = entry.value.WhichOneof("kind")
        if kind == "bytes_list":
            features[entry.key] = list(entry.value.bytes_list.value)
        elif kind:
            dtype = np.float32 if kind == "float_list" else np.int64
            values = getattr(entry.value, kind).value
            features[entry.key] = np.fromiter(values, dtype, len(values))
    return features

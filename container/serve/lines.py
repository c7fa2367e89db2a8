"""Records of a body read one by one, so that a bad one gets a placeholder instead of failing its batch.

A model is given the good records alone; the placeholders are put between its answers when these are encoded.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from container.serve import codec
from container.serve.call import Call
from container.serve.exchange import BadRequest

TYPES = (codec.CSV, codec.JSON_LINES, *codec.RECORD_TYPES)
T = TypeVar("T")


class NoRecords:
    """What a body without a single good record becomes, and its prediction: no model sees it."""


NO_RECORDS = NoRecords()


def read_records(call: Call, kind: str, read: Callable[[bytes, int], T]) -> list[tuple[int, int, T]]:
    """The good records as (index, line or record number, value); `call.bad` gets the others' reasons by index.

    Args:
        call: its body is read.
        kind: one of `TYPES`.
        read: a record and its number in the body to a value; raises BadRequest.

    Raises:
        BadRequest: the body has no records at all, or nothing says where one ends.
    """
    good, index = [], 0
    for number, record in _records(call.request.body, kind):
        try:
            good.append((index, number, read(record, number)))
        except BadRequest as error:
            call.bad[index] = str(error)
        index += 1
    if not index:
        raise BadRequest("the body has no records")
    return good


def _records(body: bytes, kind: str) -> Iterator[tuple[int, bytes]]:
    if kind in codec.RECORD_TYPES:
        from container.serve import records  # protobuf: for the few that send it

        yield from records.payloads(body, kind)
        return
    codec.check_text_size(body)
    for number, line in enumerate(bytes(body).splitlines(), 1):
        if line.strip():
            yield number, line


def decode_records(call: Call, kind: str) -> Any:
    """What a model is fed with of the good records: those of the shape that most of them have."""
    if kind in (codec.CSV, codec.JSON_LINES):
        with contextlib.suppress(BadRequest):
            whole = codec.decode_array(call.request.body, kind)  # ten times as fast as line by line
            if isinstance(whole, np.ndarray):
                return whole  # no line of it is bad
    good = read_records(call, kind, _Reader(len(call.request.body), kind))
    arrays = [codec.to_array(value) for _, _, value in good]
    shapes = [array.shape if isinstance(array, np.ndarray) else None for array in arrays]
    usual = Counter(shapes).most_common(1)[0][0] if shapes else None
    values = []
    what = "record" if kind in codec.RECORD_TYPES else "line"
    for (index, number, value), shape in zip(good, shapes, strict=True):
        if shape == usual:
            values.append(value)
        else:
            call.bad[index] = f"{what} {number} holds {_described(shape)}, most {what}s {_described(usual)}"
    return codec.to_array(values) if values else NO_RECORDS


class _Reader:
    """`value_of` for the records of one body, as long as their arrays are not many times its size."""

    def __init__(self, sent: int, kind: str) -> None:
        self._sent, self._kind = sent, kind
        self._size = 0

    def __call__(self, record: bytes, number: int) -> Any:
        value = value_of(record, number, self._kind)
        if isinstance(value, np.ndarray):
            from container.serve.record_messages import check_size  # protobuf: for the few that send it

            check_size(self._size + value.nbytes, self._sent, f"record {number} and those before it")
            self._size += value.nbytes
        return value


def value_of(record: bytes, number: int, kind: str) -> Any:
    """One record's value: nested lists, an array, or of a binary record the files in it.

    Raises:
        BadRequest: it cannot be read.
    """
    if kind == codec.CSV:
        return codec.decode_csv(record, number)[0].tolist()
    if kind == codec.JSON_LINES:
        return codec.decode_json_lines(record, number)[0]
    from container.serve import records  # protobuf: for the few that send it

    return records.value_of(record, number, kind)


def _described(shape: tuple[int, ...] | None) -> str:
    return "something that is no array of numbers" if shape is None else f"numbers of shape {list(shape)}"


def merge(rows: Sequence[Any], placeholders: Mapping[int, Any]) -> list[Any]:
    """Rows with the placeholders at their indices between them."""
    remaining = iter(rows)
    total = len(rows) + len(placeholders)
    return [placeholders[index] if index in placeholders else next(remaining) for index in range(total)]


def encode_with_placeholders(prediction: Any, call: Call, kind: str) -> bytes:
    """An answer per record: the model's for the good ones, what was wrong for the others (NaN in CSV and npy).

    Raises:
        BadRequest: the model did not answer with one row per record, so that nothing says where the bad ones belong.
    """
    rows = [] if prediction is NO_RECORDS else prediction
    count = 0 if prediction is NO_RECORDS else len(call.data)
    if not isinstance(rows, list | np.ndarray) or np.shape(rows)[:1] == () or len(rows) != count:
        raise BadRequest(f"{next(iter(call.bad.values()))}; and the model does not answer record by record")
    if kind in (codec.JSON, codec.JSON_LINES, codec.RECORDIO):
        errors = {index: {"index": index, "error": message} for index, message in call.bad.items()}
        return codec.encode_prediction(merge(list(rows), errors), kind)
    if kind == codec.CSV:
        lines = codec.encode_prediction(rows, kind).decode().split("\n") if count else []
        nothing = ",".join(["nan"] * (lines[0].count(",") + 1 if lines else 1))
        return "\n".join(merge(lines, dict.fromkeys(call.bad, nothing))).encode()
    array = np.asarray(rows, dtype=np.result_type(np.asarray(rows), np.float32))
    return codec.encode_npy(np.array(merge(list(array), dict.fromkeys(call.bad, np.full(array.shape[1:], np.nan)))))

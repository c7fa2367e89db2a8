"""Bytes to arrays and predictions to bytes, for the formats the server reads and writes itself.

Numbers that are not finite: JSON has none, so `NaN` in a JSON body is 400 and a NaN in an answer becomes `null`; CSV
and npy carry them in both directions. Whether a model accepts them is the model's business.
"""

import codecs
import csv
import io
import itertools
import math
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from container.serve.exchange import BadRequest, BodyTooLarge, NotAcceptable, UnsupportedMediaType

JSON = "application/json"
CSV = "text/csv"
NPY = "application/x-npy"
JSON_LINES = "application/jsonlines"
IMAGE = "application/x-image"
RECORDIO = "application/x-recordio-protobuf"
TFRECORD = "application/x-tfrecord"
ALIASES = {
    "application/jsonl": JSON_LINES,
    "application/x-jsonlines": JSON_LINES,
    "application/x-ndjson": JSON_LINES,
    "application/csv": CSV,
    "application/npy": NPY,
    "application/x-tfexample": TFRECORD,
}
ARRAY_TYPES = (JSON, CSV, NPY, JSON_LINES)
RECORD_TYPES = (RECORDIO, TFRECORD)  # what batch transform's binary splits send
ANSWER_TYPES = (*ARRAY_TYPES, RECORDIO)
TEXT_LIMIT_BYTES = 128 * 1024 * 1024  # batch transform sends at most 100 MB
NPY_HEADER_LIMIT = 10_000  # numpy's own limit for headers it calls safe
CSV_FIELDS_AT_ONCE = 20_000  # as Python's objects, 40 bytes each and more, before they become an array
LONGEST_REMEMBERED = 1024  # characters of an Accept header; a cache of longer ones could be filled with gigabytes
LONGEST_TYPE = 255  # characters of a media type; RFC 6838 allows 127 on each side
NUMBERS = {int, float, bool, np.ndarray}


def sent_type(content_type: str | None) -> str:
    """The type before `;`, in lower case; JSON where the request names none."""
    return (content_type or JSON).partition(";")[0].strip().lower() or JSON


def media_type(content_type: str | None) -> str:
    """As `sent_type`, aliases resolved."""
    kind = sent_type(content_type)
    return ALIASES.get(kind, kind)


def is_image(kind: str) -> bool:
    """Whether a media type announces an encoded image."""
    return kind == IMAGE or kind.startswith("image/")


def negotiate(accept: str | None, offered: tuple[str, ...], default: str) -> str:
    """The offered type that the caller likes best.

    Args:
        accept: the Accept header; absent, empty or `*/*` means `default`.
        offered: what can be written.
        default: the server's own choice; the first offered one where it is not among them.

    Raises:
        NotAcceptable: nothing offered is acceptable.
    """
    choose = _negotiate if len(accept or "") <= LONGEST_REMEMBERED else _negotiate.__wrapped__
    return choose(accept, offered, default)


@lru_cache(maxsize=256)
def _negotiate(accept: str | None, offered: tuple[str, ...], default: str) -> str:
    fallback = default if default in offered else offered[0]
    for kind in preferences(accept):
        if kind == "*/*":
            return fallback
        if ALIASES.get(kind, kind) in offered:
            return ALIASES.get(kind, kind)
        if kind.endswith("/*"):
            matching = [candidate for candidate in (fallback, *offered) if candidate.startswith(kind[:-1])]
            if matching:
                return matching[0]
    raise NotAcceptable(f"Accept {accept!r} names no format this model writes", known=list(offered))


def preferences(accept: str | None) -> list[str]:
    """Media types of an Accept header, best first, those with q=0 left out; `["*/*"]` where there is none.

    What could not be sent back as the answer's Content-Type is left out, too.
    """
    return (_preferences if len(accept or "") <= LONGEST_REMEMBERED else _preferences.__wrapped__)(accept)


@lru_cache(maxsize=256)
def _preferences(accept: str | None) -> list[str]:
    ranked = []
    for position, part in enumerate((accept or "").split(",")):
        kind, _, parameters = part.partition(";")
        if kind.strip():
            ranked.append((-_quality(parameters), position, kind.strip().lower()))
    if not ranked:
        return ["*/*"]
    best_first = [kind for quality, _, kind in sorted(ranked) if quality < 0]
    return [kind for kind in best_first if len(kind) <= LONGEST_TYPE and kind.isascii() and kind.isprintable()]


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def check_text_size(body: bytes) -> None:
    """Refuse what would take thirty times its size as Python numbers; npy has no such limit.

    Raises:
        BodyTooLarge: over `TEXT_LIMIT_BYTES`.
    """
    if len(body) > TEXT_LIMIT_BYTES:
        raise BodyTooLarge(f"{len(body)} bytes of text; above {TEXT_LIMIT_BYTES} send {NPY}, or read it in input_fn")


def decode_json(body: bytes) -> Any:
    """Any JSON value.

    Raises:
        BadRequest: not JSON (NaN and infinity are not), or nested too deep.
    """
    check_text_size(body)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None


def decode_json_lines(body: bytes, first: int = 1) -> list[Any]:
    """One value per line; blank lines are no records. `first` is the number of the first line in the caller's body."""
    check_text_size(body)
    values = []
    for number, line in enumerate(bytes(body).splitlines(), first):
        if line.strip():
            try:
                values.append(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise BadRequest(f"line {number} of the body is not JSON: {error}") from None
    return values


def decode_csv(body: bytes, first: int = 1) -> np.ndarray:
    """Lines of numbers as float32 [rows, columns], with or without a final newline.

    Args:
        body: the text.
        first: the number of its first row in what the caller sent.

    Raises:
        BadRequest: not UTF-8, no rows, rows of different length, or a field that is no number.
    """
    check_text_size(body)
    rows = _csv_rows(bytes(body).removeprefix(codecs.BOM_UTF8))
    head = next(rows, None)
    if head is None:
        raise BadRequest("the CSV body has no rows")
    rows, at_once = itertools.chain([head], rows), max(1, CSV_FIELDS_AT_ONCE // len(head))
    parts: list[np.ndarray] = []
    number = first
    while part := list(itertools.islice(rows, at_once)):
        for position, row in enumerate(part, number):
            if len(row) != len(head):
                raise BadRequest(f"row {position} has {len(row)} fields, row {first} has {len(head)}")
        parts.append(_csv_numbers(part, number))
        number += len(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _csv_rows(body: bytes) -> Iterator[list[str] | list[bytes]]:
    """The fields of each line that is not blank; they stay bytes where none is quoted, which numpy reads faster."""
    if b'"' not in body:
        if b"\r" in body:
            body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield from (line.split(b",") for line in io.BytesIO(body) if not line.isspace())
        return
    try:
        yield from (row for row in csv.reader(io.StringIO(body.decode())) if row)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the CSV body is not UTF-8: {error}") from None
    except csv.Error as error:
        raise BadRequest(f"the CSV body cannot be read: {error}") from None


def _csv_numbers(rows: Sequence[Sequence[str | bytes]], first: int) -> np.ndarray:
    try:
        return np.array(rows, dtype=np.float32)
    except (ValueError, OverflowError):
        raise BadRequest(_first_bad_field(rows, first)) from None


def _first_bad_field(rows: Sequence[Sequence[str | bytes]], first: int) -> str:
    for number, row in enumerate(rows, first):
        for column, field in enumerate(row, 1):
            try:
                float(field)
            except ValueError:
                where = f"row {number}, field {column} of the CSV body"
                try:
                    text = field if isinstance(field, str) else field.decode()
                except UnicodeDecodeError:
                    return f"{where} is not UTF-8"
                return f"{where} is no number: {text.strip()[:40]!r}"
    return "the CSV body holds something that is no number"


def decode_npy(body: bytes) -> np.ndarray:
    """A numeric array, on the body's own memory and read-only; never unpickled.

    Raises:
        BadRequest: not npy, an object or structured dtype, or a length that differs from what the header says.
    """
    if body[:6] != b"\x93NUMPY" or len(body) < 10:
        raise BadRequest("the body is not npy: it does not start with \\x93NUMPY")
    width = 2 if body[6] == 1 else 4
    start = 8 + width + int.from_bytes(body[8 : 8 + width], "little")
    if start > NPY_HEADER_LIMIT:
        raise BadRequest(f"the npy header is {start} bytes long, the limit is {NPY_HEADER_LIMIT}")
    shape, fortran_order, dtype = _npy_header(bytes(body[:start]))
    size = math.prod(shape) * dtype.itemsize
    if len(body) != start + size:
        said = f"{size} bytes" if size < 2**63 else "more than 8 EiB"  # Python refuses to print very long numbers
        raise BadRequest(f"the npy header says {dtype} {str(shape)[:200]}, {said}; the body has {len(body) - start}")
    flat = np.frombuffer(body, dtype, offset=start) if math.prod(shape) else np.empty(0, dtype)
    try:
        return flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)
    except (ValueError, OverflowError):  # more dimensions, or beside a zero larger ones, than an array can have
        raise BadRequest(f"no array can have the shape in the npy header: {str(shape)[:200]}") from None


@lru_cache(maxsize=256)  # callers send the same header again and again, and parsing it costs more than the rest
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(stream, max_header_size=NPY_HEADER_LIMIT)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise BadRequest(f"the npy header cannot be read: {type(error).__name__}") from None
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise BadRequest(f"npy of dtype {dtype} is refused: send integers, floats or booleans")
    if any(type(extent) is not int or extent < 0 for extent in shape):  # numpy takes True for an extent
        raise BadRequest(f"the npy header has an extent that is no whole number from 0: {str(shape)[:200]}")
    return shape, fortran_order, dtype


def decode_text(body: bytes) -> str:
    """The body as UTF-8 text.

    Raises:
        BadRequest: it is not UTF-8.
    """
    try:
        return str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: {error}") from None


def decode_array(body: bytes, kind: str) -> Any:
    """What a model without its own `input_fn` gets: a numpy array, or the JSON value where it is no array of numbers.

    Raises:
        UnsupportedMediaType: `kind` is none of `ARRAY_TYPES` and `RECORD_TYPES`.
        BadRequest: the body is malformed.
    """
    if kind == JSON:
        value = decode_json(body)
        wrapped = isinstance(value, dict) and "instances" in value
        return to_array(value["instances"] if wrapped else value, may_hold_text=body.count(b'"') > 2 * wrapped)
    if kind == NPY:
        return decode_npy(body)
    if kind == CSV:
        return decode_csv(body)
    if kind == JSON_LINES:
        return to_array(decode_json_lines(body))
    if kind in RECORD_TYPES:
        return decode_records(body, kind)
    raise UnsupportedMediaType(f"Content-Type {kind!r} has no decoder here", known=[*ARRAY_TYPES, *RECORD_TYPES])


def decode_records(body: bytes, kind: str) -> np.ndarray | list[bytes]:
    """What the model is fed with, of each record of a binary format: an array, or encoded files such as images.

    Raises:
        BadRequest: the body is malformed.
    """
    from container.serve import records  # protobuf: for the few that send it

    return records.decode(body, kind)


def to_array(value: Any, may_hold_text: bool = True) -> Any:
    """Nested lists of numbers as an array (floats as float32), anything else unchanged.

    Args:
        value: a JSON value.
        may_hold_text: whether to look through it for text first: numpy gives every element of a list the width of its
            longest text, and a body of 60 kB would take a gigabyte.
    """
    if not isinstance(value, list) or (may_hold_text and not _holds_only_numbers(value)):
        return value
    try:
        array = np.array(value)
    except ValueError:  # ragged
        return value
    if array.dtype.kind not in "biuf":
        return value
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _holds_only_numbers(value: list[Any]) -> bool:
    level = [value]
    while level:  # no recursion: a body may nest a thousand of them
        kinds = set(itertools.chain.from_iterable(map(type, part) for part in level))
        if kinds - NUMBERS - {list}:
            return False
        level = [part for parts in level for part in parts if type(part) is list] if list in kinds else []
    return True


def encode_prediction(prediction: Any, kind: str) -> bytes:
    """A prediction without its own `output_fn`: arrays and JSON values in any of `ANSWER_TYPES`; bytes as they are.

    Line-based answers end without a newline: `AssembleWith=Line` adds it.
    """
    if isinstance(prediction, bytes | bytearray | memoryview | str):
        return to_bytes(prediction)
    if kind == JSON:
        return encode_json(prediction)
    if kind in (JSON_LINES, RECORDIO):
        is_list = isinstance(prediction, list) or (isinstance(prediction, np.ndarray) and prediction.ndim)
        rows = prediction if is_list else [prediction]
        return b"\n".join(encode_json(row) for row in rows) if kind == JSON_LINES else encode_records(rows)
    array = _as_array(prediction, kind)
    if kind == NPY:
        return encode_npy(array)
    return "\n".join(csv_row(np.atleast_1d(row)) for row in np.atleast_1d(array)).encode()


def encode_records(rows: Iterable[Any]) -> bytes:
    """RecordIO with a record of SageMaker's for each row, whose labels are the row's values.

    Raises:
        NotAcceptable: a row is neither numbers nor an object of numbers and texts.
    """
    from container.serve import records  # protobuf: for the few that ask for it

    return records.encode(rows)


def csv_row(values: np.ndarray) -> str:
    """Numbers between commas, each the shortest text that reads back as the same number of its dtype, as in JSON."""
    return ",".join(map(str, values.ravel()))


def to_bytes(value: Any) -> bytes:
    """What a handler returned as the body: bytes, text, or any JSON value."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return encode_json(value)


def _as_array(prediction: Any, kind: str) -> np.ndarray:
    try:
        array = np.asarray(prediction)
    except ValueError:  # ragged
        array = np.empty(0, dtype=object)
    if array.dtype.kind == "O":
        raise NotAcceptable(f"this answer is no array and has no form as {kind}; ask for {JSON}", known=[JSON])
    return array


def encode_json(value: Any) -> bytes:
    """JSON with arrays as lists, at any depth; NaN and infinity become null."""
    try:
        return orjson.dumps(value, default=_jsonable, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:
        raise TypeError(str(error.__cause__ or error)) from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()  # not contiguous, or of a dtype orjson does not know
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} has no JSON form; return it from output_fn as bytes")


def encode_npy(array: np.ndarray) -> bytes:
    """The array in numpy's format; objects are refused by numpy itself."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()

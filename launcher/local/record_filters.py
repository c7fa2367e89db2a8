"""DataProcessing of batch transform: InputFilter, JoinSource and OutputFilter, record by record. Pure functions.

Source of the rules: "Associate Prediction Results with Input Records". Records are CSV lines or JSON values.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JSON_PATH_STEP = re.compile(r"\.(?P<name>[A-Za-z_][\w-]*)|\[(?P<selector>[^\]]+)\]")
QUOTED = re.compile(r"""\s*(['"])(?P<name>.*)\1\s*""")
INDEX = re.compile(r"\s*-?\d+\s*")
SLICE = re.compile(r"\s*(?P<start>-?\d*)\s*:\s*(?P<stop>-?\d*)\s*")
ROOT = "$"
OUTPUT, INPUT = "SageMakerOutput", "SageMakerInput"


class FilterError(Exception):
    """A path that is none, or a record that it does not fit."""


Step = str | int | slice | tuple[str, ...] | tuple[int, ...]


def parse_path(path: str) -> list[Step]:
    """The steps of a JSONPath: names, indices, slices, and lists of names or indices.

    Raises:
        FilterError: it is not of the subset that SageMaker takes.
    """
    steps: list[Step] = []
    rest = path.removeprefix(ROOT)
    while rest:
        match = JSON_PATH_STEP.match(rest)
        if match is None or not path.startswith(ROOT):
            raise FilterError(f"{path!r} is no JSONPath like $.features, $[1:], $[0,2] or $['id','{OUTPUT}']")
        steps.append(match["name"] if match["name"] else _selector(match["selector"], path))
        rest = rest[match.end() :]
    return steps


def _selector(text: str, path: str) -> Step:
    between = SLICE.fullmatch(text)
    if between:
        return slice(*(int(between[name]) if between[name] else None for name in ("start", "stop")))
    items = text.split(",")
    names = [QUOTED.fullmatch(item) for item in items]
    if all(names):
        found = tuple(name["name"] for name in names if name)
        return found if len(found) > 1 else found[0]
    if all(INDEX.fullmatch(item) for item in items):
        indices = tuple(int(item) for item in items)
        return indices if len(indices) > 1 else indices[0]
    raise FilterError(f"[{text}] in {path!r} is neither an index, a slice, nor quoted names")


def select(value: Any, path: str) -> Any:
    """What a JSONPath picks of a record: a value, a list for several indices, an object for several names.

    Raises:
        FilterError: the record has no such part.
    """
    for step in parse_path(path):
        try:
            if isinstance(step, tuple) and isinstance(step[0], str):
                value = {name: value[name] for name in step}
            elif isinstance(step, tuple):
                value = [value[index] for index in step]
            else:
                value = value[step]
        except (KeyError, IndexError, TypeError) as error:
            raise FilterError(f"the record {json.dumps(value)[:200]} has nothing at {path}") from error
    return value


@dataclass(frozen=True)
class DataProcessing:
    """How the records of one job are filtered and joined."""

    input_filter: str = ROOT
    output_filter: str = ROOT
    joins: bool = False
    is_csv: bool = False

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> "DataProcessing | None":
        """What a CreateTransformJob request asks for; None where its records pass as they are."""
        given = request.get("DataProcessing", {})
        content_type = request["TransformInput"].get("ContentType", "").partition(";")[0].strip()
        processing = cls(
            given.get("InputFilter", ROOT),
            given.get("OutputFilter", ROOT),
            given.get("JoinSource") == "Input",
            content_type == "text/csv",
        )
        is_plain = (processing.input_filter, processing.output_filter, processing.joins) == (ROOT, ROOT, False)
        return None if is_plain else processing

    def before(self, record: bytes) -> bytes:
        """A record as the container gets it, its line end kept.

        Raises:
            FilterError: it is not of its content type, or the filter does not fit it.
        """
        text = record.decode()
        end = "\n" if text.endswith("\n") else ""
        return (self._write(select(self._read(text), self.input_filter)) + end).encode()

    def after(self, records: Sequence[bytes], answer: bytes) -> bytes:
        """The container's answer for records, joined and filtered, one per line.

        Raises:
            FilterError: not one answer per record, or one that does not fit.
        """
        answers = answer.decode().removesuffix("\n").split("\n")
        if len(answers) != len(records):
            raise FilterError(f"the container answered {len(answers)} records for {len(records)}")
        joined = [self._join(record.decode(), text) for record, text in zip(records, answers, strict=True)]
        return "\n".join(self._write(select(value, self.output_filter)) for value in joined).encode()

    def _join(self, record: str, answer: str) -> Any:
        result = self._read(answer)
        if not self.joins:
            return result
        source = self._read(record)
        if self.is_csv:
            return source + result
        return {**source, OUTPUT: result} if isinstance(source, dict) else {INPUT: source, OUTPUT: result}

    def _read(self, text: str) -> Any:
        if self.is_csv:
            return next(csv.reader([text.rstrip("\r\n")]), [])
        try:
            return json.loads(text)
        except ValueError as error:
            raise FilterError(f"the record {text[:200]!r} is no JSON: {error}") from error

    def _write(self, value: Any) -> str:
        if not self.is_csv:
            return json.dumps(value)
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(value if isinstance(value, list) else [value])
        return buffer.getvalue()

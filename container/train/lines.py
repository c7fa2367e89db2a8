"""Lines of output: whole, with host and rank, as text or as JSON objects, and with progress bars tamed."""

import contextlib
import io
import json
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import IO, BinaryIO

from container import contract

PROGRESS_SECONDS = 10.0  # a progress bar's line in the log
LAST_LINES_SECONDS = 2.0  # where a process that was left behind keeps the pipe open
_LEVELS = {"D": "DEBUG", "I": "INFO", "W": "WARNING", "E": "ERROR", "C": "CRITICAL", "F": "CRITICAL"}
# How Python's logging, torch (glog) and many scripts begin a line: [time] LEVEL message
_LOGGED = re.compile(
    r"^(?:\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?Z? )?"
    r"(?P<word>DEBUG|INFO|WARNING|ERROR|CRITICAL)\b[: ]*(?P<text>.*)"
)
_GLOG = re.compile(r"^(?P<letter>[DIWECF])\d{4} \d\d:\d\d:\d\d\.\d+ (?P<text>.*)")


def are_json(environ: Mapping[str, str]) -> bool:
    """Whether the job wants its log as JSON."""
    return environ.get(contract.LOG_FORMAT, "").strip().lower() == "json"


def json_line(text: str, level: str, place: Mapping[str, str | int]) -> str:
    """One JSON object: time in UTC, level, host and rank, message.

    Args:
        text: the line; the level that it names itself, at its beginning, counts.
        level: of a line that names none.
        place: host and, of a rank's line, rank.
    """
    named = _LOGGED.match(text)
    glog = _GLOG.match(text)
    if named:
        level, text = named["word"], named["text"]
    elif glog:
        level, text = _LEVELS[glog["letter"]], glog["text"]
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    return json.dumps({"time": stamp, "level": level, **place, "message": text}, ensure_ascii=False)


class LineStream(io.TextIOWrapper):
    """A text stream that writes whole lines in one system call each, so that the lines of many ranks never mix.

    With several ranks each line starts with host and rank; as JSON it always says both.
    """

    def __init__(
        self, buffer: BinaryIO, prefix: str, place: Mapping[str, str | int] | None = None, level: str = "INFO"
    ) -> None:
        """Args: prefix of each line, or, for JSON, the place it comes from; level of a line that names none."""
        super().__init__(buffer, encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True)
        self.last_line = ""
        self._prefix, self._place, self._level = prefix, place, level
        self._pending = ""
        self._lock = threading.Lock()
        self._progress_shown = 0.0

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._pending = (self._pending + text.replace("\r\n", "\n")).split("\n")
            for line in lines:
                self._write_line(line.rpartition("\r")[2])
            if "\r" in self._pending:
                self._show_progress()
        return len(text)

    def _show_progress(self) -> None:
        """A bar that redraws itself becomes a line every ten seconds."""
        *drawn, self._pending = self._pending.split("\r")
        bar = next((text for text in reversed(drawn) if text.strip()), "")
        if bar and time.monotonic() - self._progress_shown > PROGRESS_SECONDS:
            self._progress_shown = time.monotonic()
            self._write_line(bar)

    def _write_line(self, line: str) -> None:
        self.last_line = line or self.last_line
        if self._place is None:
            super().write(f"{self._prefix}{line}\n")
        elif line:
            super().write(json_line(line, self._level, self._place) + "\n")
        self.buffer.flush()

    def close(self) -> None:
        if self._pending:
            self.write("\n")
        super().close()


@contextlib.contextmanager
def as_json(source: IO[bytes] | None, host: str) -> Iterator[None]:
    """Meanwhile, copy lines to standard output, as JSON where they are not: torchrun's, native libraries', a shell's.

    Args:
        source: read to its end; None where lines go there by themselves.
        host: this one.
    """
    thread = threading.Thread(target=_copy, args=(source, host), name="lines", daemon=True)
    if source is not None:
        thread.start()
    yield
    if source is not None:
        thread.join(LAST_LINES_SECONDS)


def _copy(source: IO[bytes], host: str) -> None:
    target = sys.stdout.buffer
    for raw in source:
        text = raw.decode("utf-8", "backslashreplace").rstrip("\r\n").rpartition("\r")[2]
        if text:
            line = text if text.startswith('{"time": ') else json_line(text, "INFO", {"host": host})
            target.write(line.encode("utf-8", "backslashreplace") + b"\n")
            target.flush()

"""Container logs: to the local CloudWatch Logs and to files `logs/<group>/<stream>.log`, line by line."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from moto.backends import get_backend

from launcher.local.buckets import ACCOUNT

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
TRANSFORM_GROUP = "/aws/sagemaker/TransformJobs"
PROCESSING_GROUP = "/aws/sagemaker/ProcessingJobs"
ENDPOINT_GROUP = "/aws/sagemaker/Endpoints"
SUFFIX = ".log"
TAIL_BYTES = 256 * 1024  # of each stream, that a page is shown again and again
MAX_MESSAGE_BYTES = 256 * 1024  # CloudWatch Logs' limit per event


class LogStream:
    """One stream of one group; `write` adds a line with the time at which it arrives."""

    def __init__(self, logs: "Logs", group: str, name: str) -> None:
        self.group, self.name = group, name
        self._logs = logs
        self._lock = threading.Lock()
        self._path = logs.path(group, name)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a", encoding="utf-8", buffering=1)

    @property
    def arn(self) -> str:
        return f"arn:aws:logs:{self._logs.region}:{ACCOUNT}:log-group:{self.group}:log-stream:{self.name}"

    def write(self, line: str) -> None:
        now = time.time()
        with self._lock:
            if not self._file.closed:
                self._file.write(f"{datetime.fromtimestamp(now, UTC).isoformat(timespec='milliseconds')} {line}\n")
        self._logs.put(self.group, self.name, now, line)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Logs:
    """Every log group of the local SageMaker."""

    def __init__(self, home: Path, region: str) -> None:
        self.region = region
        self.lock = threading.RLock()
        self._directory = home / "logs"
        self._backend = get_backend("logs")[ACCOUNT][region]

    def stream(self, group: str, name: str) -> LogStream:
        """Open a stream, new or not."""
        self._ensure(group, name)
        return LogStream(self, group, name)

    def path(self, group: str, name: str) -> Path:
        return self._directory / group.strip("/") / (name + SUFFIX)

    def put(self, group: str, name: str, seconds: float, line: str) -> None:
        """Add one event to CloudWatch Logs."""
        event = {
            "timestamp": int(seconds * 1000),
            "message": line.encode()[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore"),
        }
        with self.lock:
            self._ensure(group, name)  # a user may have deleted it meanwhile
            self._backend.put_log_events(group, name, [event])

    def tail(self, group: str, prefix: str, limit: int) -> tuple[list[str], bool]:
        """The last lines of the streams that begin with `prefix`, in the order of time, and whether there are more.

        Returns:
            `<time> <stream> <line>` each.
        """
        folder = self._directory / group.strip("/")
        lines, is_cut = [], False
        for path in folder.rglob("*" + SUFFIX):
            stream = path.relative_to(folder).as_posix().removesuffix(SUFFIX)
            if stream.startswith(prefix):
                text, has_more = _last_lines(path)
                is_cut = is_cut or has_more or len(text) > limit
                lines += [f"{line[:23]} {stream.removeprefix(prefix)} {line[30:]}" for line in text[-limit:]]
        return sorted(lines, key=lambda line: line[:23])[-limit:], is_cut or len(lines) > limit

    def lines(self, group: str, below: str) -> Iterator[tuple[float, str]]:
        """Epoch seconds and text of every line of the streams below a folder of streams, stream by stream."""
        folder = self._directory / group.strip("/")
        for path in sorted((folder / below).rglob("*" + SUFFIX)):
            yield from _dated_lines(path)

    def restore(self) -> None:
        """Fill CloudWatch Logs from the files of an earlier server."""
        for path in sorted(self._directory.rglob("*" + SUFFIX)):
            relative = path.relative_to(self._directory)
            group, name = _group_and_stream(relative)
            self._ensure(group, name)
            for seconds, message in _dated_lines(path):
                self.put(group, name, seconds, message)

    def _ensure(self, group: str, name: str) -> None:
        with self.lock:
            self._backend.ensure_log_group(group)
            self._backend.ensure_log_stream(group, name)


def _last_lines(path: Path) -> tuple[list[str], bool]:
    """The whole lines at the end of a file that may be large, and whether there are others before them."""
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").split("\n")[:-1]
    return lines[1:] if start else lines, start > 0


def _dated_lines(path: Path) -> Iterator[tuple[float, str]]:
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        stamp, _, message = line.partition(" ")
        with contextlib.suppress(ValueError):  # the last line of a server that was killed may be cut
            yield datetime.fromisoformat(stamp).timestamp(), message


def _group_and_stream(relative: Path) -> tuple[str, str]:
    """`aws/sagemaker/TrainingJobs/job/algo-1-1.log` -> group and stream; an endpoint's name belongs to its group."""
    depth = 4 if relative.parts[2] == "Endpoints" else 3
    group = "/" + "/".join(relative.parts[:depth])
    return group, "/".join(relative.parts[depth:]).removesuffix(SUFFIX)


class LineSplitter:
    """Bytes in, whole lines out: a carriage return ends a line, too, so that a progress bar is readable."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._rest = b""

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._emit(line)

    def close(self) -> None:
        self._emit(self._rest)
        self._rest = b""

    def _emit(self, line: bytes) -> None:
        if line:
            self._write(line.decode("utf-8", "replace"))

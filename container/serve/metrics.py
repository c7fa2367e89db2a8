"""What the serving processes count, in memory that the master shares with all of them.

Each process writes its own row of plain numbers, so that counting costs about a microsecond a request, needs no file,
and whichever process is asked for the figures sums the rows. A row outlives its process: its successor counts on.
"""

import mmap
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container import contract

if TYPE_CHECKING:
    from container.serve.call import Call

INVOKE_MODEL_ROUTE = "/models/{name}/invoke"
MODEL_ROUTE = "/models/{name}"
MODELS_ROUTE = "/models"
METRICS_ROUTE = "/metrics"
OPENAPI_ROUTE = "/openapi.json"
PAGE_ROUTE = "/"
OTHER_ROUTE = "other"
ROUTES = (
    contract.INVOCATIONS_PATH,
    contract.HEALTH_PATH,
    contract.EXECUTION_PARAMETERS_PATH,
    INVOKE_MODEL_ROUTE,
    MODEL_ROUTE,
    MODELS_ROUTE,
    METRICS_ROUTE,
    OPENAPI_ROUTE,
    PAGE_ROUTE,
    OTHER_ROUTE,
)
PHASES = ("queue", "decode", "predict", "encode", "total")
SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds of the latency histograms' buckets; one more bucket takes what is above."""
RECORDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Upper bounds of the batch size histogram's buckets, in requests."""
GAUGES = ("pid", "queue_length", "model_bytes", "models")

# A row: gauges, then status counts per route, then histograms, each its buckets and the sum of what it saw.
STATUSES = 600
_COUNTS = len(GAUGES)
_HISTOGRAMS = _COUNTS + len(ROUTES) * STATUSES
_TIMES = len(SECONDS) + 2
_BATCHES = _HISTOGRAMS + len(PHASES) * _TIMES
ROW = _BATCHES + len(RECORDS) + 2
_SUM = len(SECONDS) + 1
_OFFSETS = {route: _COUNTS + number * STATUSES for number, route in enumerate(ROUTES)}
_QUEUE, _DECODE, _PREDICT, _ENCODE, _TOTAL = (_HISTOGRAMS + number * _TIMES for number in range(len(PHASES)))


@dataclass(frozen=True)
class Histogram:
    """Observations by bucket: one count per upper bound, and one for what was above the last."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        return sum(self.counts)

    def minus(self, earlier: "Histogram") -> "Histogram":
        """What was observed since `earlier`."""
        counts = tuple(now - before for now, before in zip(self.counts, earlier.counts, strict=True))
        return Histogram(self.bounds, counts, self.sum - earlier.sum)

    def quantile(self, fraction: float) -> float:
        """The upper bound of the bucket that holds the quantile; the last bound where it is above; 0.0 without any."""
        wanted, seen = fraction * self.count, 0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            seen += count
            if seen and seen >= wanted:
                return bound
        return self.bounds[-1] if self.count else 0.0


@dataclass(frozen=True)
class Figures:
    """One row as it stood, or the sum of several; see `Metrics`."""

    requests: dict[tuple[str, int], int]
    """By route and status."""
    phases: dict[str, Histogram]
    """Seconds, by phase."""
    batches: Histogram
    """Requests per batch."""
    gauges: dict[str, float]


class Metrics:
    """A row of figures per process. The master creates it before it forks; each process then enters its own row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        memory = memoryview(mmap.mmap(-1, 8 * (1 + rows * ROW))).cast("d")
        self._restarts = memory[:1]
        self._rows = [memory[1 + number * ROW : 1 + (number + 1) * ROW] for number in range(rows)]
        self._lock = threading.Lock()
        self.enter(0)

    def enter(self, row: int) -> None:
        """Count into this row from here on; what its last process held is gone, what it counted stays."""
        self.row = row
        self._cells = self._rows[row]
        self._lock = threading.Lock()  # the master's may be held at the moment of a fork
        for name in GAUGES:
            self.set(name, 0)

    def answered(self, call: "Call", status: int, route: str = contract.INVOCATIONS_PATH) -> None:
        """Count an invocation as it is handed to its connection; from any thread."""
        cells, now = self._cells, time.monotonic()
        arrived, started, decoded, predicted = call.arrived, call.started, call.decoded, call.predicted
        with self._lock:
            cells[_OFFSETS[route] + (status if 0 < status < STATUSES else 0)] += 1
            seconds = now - arrived
            cells[_TOTAL + bisect_left(SECONDS, seconds)] += 1
            cells[_TOTAL + _SUM] += seconds
            if not predicted:  # refused or failed on its way: the other phases are not comparable
                return
            seconds = started - arrived
            cells[_QUEUE + bisect_left(SECONDS, seconds)] += 1
            cells[_QUEUE + _SUM] += seconds
            seconds = decoded - started
            cells[_DECODE + bisect_left(SECONDS, seconds)] += 1
            cells[_DECODE + _SUM] += seconds
            seconds = predicted - decoded
            cells[_PREDICT + bisect_left(SECONDS, seconds)] += 1
            cells[_PREDICT + _SUM] += seconds
            seconds = now - predicted
            cells[_ENCODE + bisect_left(SECONDS, seconds)] += 1
            cells[_ENCODE + _SUM] += seconds

    def count(self, route: str, status: int) -> None:
        """Count any other answer."""
        with self._lock:
            self._cells[_OFFSETS[route] + (status if 0 < status < STATUSES else 0)] += 1

    def batch(self, size: int) -> None:
        """Count a batch that was predicted together."""
        with self._lock:
            self._cells[_BATCHES + bisect_left(RECORDS, size)] += 1
            self._cells[_BATCHES + len(RECORDS) + 1] += size

    def set(self, gauge: str, value: float) -> None:
        self._cells[GAUGES.index(gauge)] = value

    def restarted(self) -> None:
        """Count a process that died and is replaced; the master alone calls it."""
        self._restarts[0] += 1

    @property
    def restarts(self) -> int:
        return int(self._restarts[0])

    def figures(self, row: int) -> Figures:
        """What one row holds now."""
        return _figures(self._rows[row].tolist())

    def total(self) -> Figures:
        """All rows summed, the gauges too."""
        rows = [row.tolist() for row in self._rows if any(row)]
        return _figures([sum(column) for column in zip(*rows, strict=True)] or [0.0] * ROW)


def _figures(cells: Sequence[float]) -> Figures:
    phases = {phase: _histogram(cells, _HISTOGRAMS + number * _TIMES, SECONDS) for number, phase in enumerate(PHASES)}
    gauges = dict(zip(GAUGES, cells, strict=False))
    return Figures(dict(_requests(cells)), phases, _histogram(cells, _BATCHES, RECORDS), gauges)


def _requests(cells: Sequence[float]) -> Iterator[tuple[tuple[str, int], int]]:
    for route, offset in _OFFSETS.items():
        for status, count in enumerate(cells[offset : offset + STATUSES]):
            if count:
                yield (route, status), int(count)


def _histogram(cells: Sequence[float], start: int, bounds: tuple[float, ...]) -> Histogram:
    end = start + len(bounds) + 1
    return Histogram(bounds, tuple(int(count) for count in cells[start:end]), cells[end])

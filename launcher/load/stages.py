"""Puts an endpoint under load, stage by stage: what it can do, and where more load only means more waiting.

Closed loop: each of a stage's senders waits for its answer before it sends again, so `concurrency` is the number of
requests under way (Little's law: concurrency = throughput x mean latency).
"""

import itertools
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from launcher.aws import Aws
from launcher.errors import AwsRefused, JobFailed, LauncherError
from launcher.invoke import Request, invoke
from launcher.load.measure import error_kind, summary

MOST_SENDERS = 256
GROWTH = 1.05  # less more throughput than this is none
HOPELESS = 0.5  # share of failed requests at which more load teaches nothing
BUSY_CLIENT = 0.85  # of one core: Python sends no faster


@dataclass(frozen=True)
class Plan:
    """How an endpoint is loaded; its length is bounded by construction."""

    concurrency: tuple[int, ...]
    """Of each stage, growing."""
    stage_seconds: float
    warm_up_seconds: float

    @property
    def seconds(self) -> float:
        """How long it takes at most, besides the last answers."""
        return self.warm_up_seconds + len(self.concurrency) * self.stage_seconds


@dataclass(frozen=True)
class Stage:
    """What came of one number of senders; latencies in milliseconds, of the answered requests."""

    concurrency: int
    requests: int
    errors: dict[str, int]
    """By kind: the container's status, or the service's code."""
    requests_per_second: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    client_cpu: float
    """Of the sending process, in cores; near 1 it is the sender that was measured."""

    @property
    def error_share(self) -> float:
        return sum(self.errors.values()) / self.requests


@dataclass(frozen=True)
class Load:
    """All stages of a run."""

    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def knee(self) -> Stage:
        """Where throughput per mean latency is highest ("power", Kleinrock 1979): beyond, requests mostly wait."""
        return max(self.stages, key=lambda stage: stage.requests_per_second / stage.mean_ms)


def run(aws: Aws, requests: Sequence[Request], plan: Plan, told: Callable[[Stage], None] | None = None) -> Load:
    """Load the endpoint stage by stage; ends early where more load shows nothing new.

    Args:
        aws: where the endpoint is.
        requests: sent in turn, by every sender.
        plan: the stages.
        told: called with each stage when it has ended.

    Raises:
        JobFailed: of the first stage, nothing was answered.
    """
    measured = aws.for_measuring(max(plan.concurrency))
    measured.client("sagemaker-runtime")  # made here: making a client is not safe in threads
    if plan.warm_up_seconds:
        _Senders(measured, requests).send(plan.concurrency[0], plan.warm_up_seconds)
    stages: list[Stage] = []
    for concurrency in plan.concurrency:
        senders = _Senders(measured, requests)
        elapsed, cpu = senders.send(concurrency, plan.stage_seconds)
        if not senders.seconds:
            problem = f"none of {senders.count} requests at concurrency {concurrency} was answered: {senders.first}"
            if not stages:
                raise JobFailed(problem)
            return Load(tuple(stages), (*_client_notes(stages), f"ended early: {problem}"))
        stages.append(stage_of(concurrency, senders.seconds, senders.errors, elapsed, cpu))
        if told:
            told(stages[-1])
        end = why_end(stages) if concurrency != plan.concurrency[-1] else ""
        if end:
            return Load(tuple(stages), (*_client_notes(stages), f"ended early: {end}"))
    return Load(tuple(stages), tuple(_client_notes(stages)))


def stage_of(concurrency: int, seconds: list[float], errors: Counter[str], elapsed: float, cpu: float) -> Stage:
    """The stage of so many answers (each with its seconds) and errors."""
    measured = summary(seconds, len(seconds) + errors.total(), elapsed)
    return Stage(
        concurrency=concurrency,
        requests=measured.requests,
        errors=dict(errors.most_common()),
        requests_per_second=measured.requests_per_second,
        mean_ms=1000 * statistics.fmean(seconds),
        p50_ms=measured.p50_ms,
        p90_ms=measured.p90_ms,
        p99_ms=measured.p99_ms,
        max_ms=measured.max_ms,
        client_cpu=cpu,
    )


def why_end(stages: Sequence[Stage]) -> str:
    """Why a next stage would show nothing new; empty where it may."""
    last = stages[-1]
    if last.error_share > HOPELESS:
        return f"{last.error_share:.0%} of the requests at concurrency {last.concurrency} failed"
    if len(stages) > 2:
        best = max(stage.requests_per_second for stage in stages[:-2])
        if all(stage.requests_per_second < GROWTH * best for stage in stages[-2:]):
            return f"two stages in a row brought no more than {best:.1f}/s"
    return ""


def _client_notes(stages: Sequence[Stage]) -> list[str]:
    busy = [stage for stage in stages if stage.client_cpu > BUSY_CLIENT]
    if not busy:
        return []
    return [
        f"from concurrency {busy[0].concurrency} on the sender itself was busy ({busy[0].client_cpu:.2f} cores): the "
        "endpoint can do more than these figures say; send from several machines"
    ]


class _Senders:
    """The threads of one stage and what they saw."""

    def __init__(self, aws: Aws, requests: Sequence[Request]) -> None:
        self.seconds: list[float] = []
        self.errors: Counter[str] = Counter()
        self.first = ""
        self._aws = aws
        self._requests = requests
        self._ended = threading.Event()
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return len(self.seconds) + self.errors.total()

    def send(self, concurrency: int, seconds: float) -> tuple[float, float]:
        """Send for so long.

        Returns:
            Seconds until the last answer, and this process's CPU seconds per second.
        """
        started, cpu = time.perf_counter(), time.process_time()
        with ThreadPoolExecutor(concurrency) as pool:
            try:
                senders = [pool.submit(self._send_until, started + seconds, first) for first in range(concurrency)]
                for sender in senders:
                    sender.result()
            finally:
                self._ended.set()  # Ctrl-C: the others end after the answer they wait for
        elapsed = time.perf_counter() - started
        return elapsed, (time.process_time() - cpu) / elapsed

    def _send_until(self, deadline: float, first: int) -> None:
        start = first % len(self._requests)
        turn = itertools.cycle([*self._requests[start:], *self._requests[:start]])
        while not self._ended.is_set() and time.perf_counter() < deadline:
            try:
                answer = invoke(self._aws, next(turn))
            except (AwsRefused, JobFailed) as error:
                self._note(error)
            else:
                with self._lock:
                    self.seconds.append(answer.seconds)

    def _note(self, error: LauncherError) -> None:
        with self._lock:
            self.first = self.first or str(error)
            self.errors[error_kind(error)] += 1

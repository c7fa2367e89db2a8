"""Sends one request many times: latencies with their distribution, throughput, errors by kind."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from botocore.exceptions import ClientError

from launcher.aws import Aws
from launcher.errors import AwsRefused, JobFailed, LauncherError
from launcher.invoke import Request, invoke

BINS = 10
BAR_WIDTH = 40


@dataclass(frozen=True)
class Percentiles:
    """Latencies of many invocations, in milliseconds, as the caller sees them."""

    requests: int
    requests_per_second: float
    """Answered ones."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Bin:
    """How many answers took so long."""

    from_ms: float
    to_ms: float
    count: int


@dataclass(frozen=True)
class Measurement:
    """What came of many requests."""

    latencies: Percentiles
    errors: dict[str, int]
    """By kind: the container's status, or the service's code."""
    histogram: tuple[Bin, ...]
    problem: str
    """The first error in full; empty where there was none."""


def measure(aws: Aws, request: Request, repeat: int, concurrency: int) -> Measurement:
    """Send the same request many times from several threads; nothing is tried again unseen.

    Args:
        aws: where the endpoint is.
        request: what to send.
        repeat: number of requests.
        concurrency: how many are under way at once.

    Raises:
        JobFailed: none was answered; the message has the first error.
    """
    measured = aws.for_measuring(concurrency)
    measured.client("sagemaker-runtime")  # made here: making a client is not safe in threads

    def once(_: int) -> float | LauncherError:
        try:
            return invoke(measured, request).seconds
        except (AwsRefused, JobFailed) as error:
            return error

    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        outcomes = list(pool.map(once, range(repeat)))
    elapsed = time.perf_counter() - started
    seconds = [outcome for outcome in outcomes if isinstance(outcome, float)]
    errors = [outcome for outcome in outcomes if isinstance(outcome, LauncherError)]
    problem = str(errors[0]) if errors else ""
    if not seconds:
        raise JobFailed(f"none of {repeat} requests was answered: {problem}")
    kinds = Counter(error_kind(error) for error in errors)
    latencies = summary(seconds, repeat, elapsed)
    return Measurement(latencies, dict(kinds.most_common()), tuple(histogram(seconds)), problem)


def summary(seconds: Sequence[float], requests: int, elapsed: float) -> Percentiles:
    """Percentiles of the answered requests, at least one."""
    values = sorted(1000 * value for value in seconds)
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return Percentiles(
        requests=requests,
        requests_per_second=len(seconds) / elapsed,
        p50_ms=cuts[49],
        p90_ms=cuts[89],
        p99_ms=cuts[98],
        max_ms=values[-1],
    )


def histogram(seconds: Sequence[float]) -> list[Bin]:
    """Answers by latency; each bin is the same factor wider than the one before, as latencies have long tails."""
    values = sorted(1000 * value for value in seconds)
    low, high = values[0], values[-1]
    if low == high:
        return [Bin(low, high, len(values))]
    factor = (high / low) ** (1 / BINS)
    counts = Counter(min(BINS - 1, int(math.log(value / low) / math.log(factor))) for value in values)
    return [Bin(low * factor**index, low * factor ** (index + 1), counts[index]) for index in range(BINS)]


def histogram_lines(bins: Sequence[Bin]) -> list[str]:
    """The bins as bars, for a terminal."""
    most = max(item.count for item in bins)
    return [
        f"{item.from_ms:9.1f} - {item.to_ms:9.1f} ms  {'#' * math.ceil(BAR_WIDTH * item.count / most):<{BAR_WIDTH}} "
        f"{item.count}"
        for item in bins
    ]


def error_kind(error: LauncherError) -> str:
    """A few words under which errors are counted: `container 500`, `ThrottlingException`, `ReadTimeoutError`."""
    cause = error.__cause__.__cause__ if isinstance(error.__cause__, AwsRefused) else error.__cause__
    if isinstance(cause, ClientError):
        status = cause.response.get("OriginalStatusCode")
        return f"container {status}" if status else cause.response["Error"]["Code"]
    return type(cause or error).__name__

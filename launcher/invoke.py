"""Invokes an endpoint: one request, or many to measure latency and throughput."""

import mimetypes
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from container.contract import REALTIME_PAYLOAD_BYTES
from launcher.aws import Aws
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.jobs.api import without_none

CONTENT_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/jsonlines",
    ".csv": "text/csv",
    ".npy": "application/x-npy",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".txt": "text/plain",
}


@dataclass(frozen=True)
class Request:
    """One invocation."""

    endpoint: str
    body: bytes
    content_type: str
    accept: str | None = None
    target_variant: str | None = None
    target_model: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came back."""

    body: bytes
    content_type: str
    variant: str
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """Latencies of many invocations, in milliseconds, as the caller sees them."""

    requests: int
    errors: int
    requests_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


def content_type_of(path: Path) -> str:
    """Content type by the file's name.

    Raises:
        ConfigError: the ending says nothing.
    """
    known = CONTENT_TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0]
    if not known:
        raise ConfigError(f"{path.name}: the ending tells no content type; add --content-type")
    return known


def invoke(aws: Aws, request: Request) -> Answer:
    """Send one request to an endpoint.

    Raises:
        ConfigError: the body is larger than an endpoint takes.
        JobFailed: the container answered with an error; its own words are in the message.
        AwsRefused: the service said no.
    """
    if len(request.body) > REALTIME_PAYLOAD_BYTES:
        raise ConfigError(
            f"the body has {len(request.body)} bytes and an endpoint takes {REALTIME_PAYLOAD_BYTES}; "
            "use a transform job, or an asynchronous endpoint (endpoint.asynchronous: true)"
        )
    started = time.perf_counter()
    try:
        reply = aws.call(
            "sagemaker-runtime",
            "InvokeEndpoint",
            **without_none(
                {
                    "EndpointName": request.endpoint,
                    "Body": request.body,
                    "ContentType": request.content_type,
                    "Accept": request.accept,
                    "TargetVariant": request.target_variant,
                    "TargetModel": request.target_model,
                }
            ),
        )
    except AwsRefused as error:
        raise _container_error(error) or error from error.__cause__
    body = reply["Body"].read()
    seconds = time.perf_counter() - started
    return Answer(body, reply.get("ContentType", ""), reply.get("InvokedProductionVariant", ""), seconds)


def _container_error(error: AwsRefused) -> JobFailed | None:
    cause = error.__cause__
    if not isinstance(cause, ClientError) or cause.response["Error"]["Code"] != "ModelError":
        return None
    response: Any = cause.response
    message = response.get("OriginalMessage") or cause.response["Error"]["Message"]
    return JobFailed(f"the container answered {response.get('OriginalStatusCode', 'with an error')}: {message}")


def measure(aws: Aws, request: Request, repeat: int, concurrency: int) -> Measurement:
    """Send the same request many times from several threads.

    Args:
        aws: where the endpoint is.
        request: what to send.
        repeat: number of requests.
        concurrency: how many are under way at once.
    """
    aws.client("sagemaker-runtime")  # made here: making a client is not safe in threads

    def once(_: int) -> float | None:
        try:
            return invoke(aws, request).seconds
        except (AwsRefused, JobFailed):
            return None

    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        outcomes = list(pool.map(once, range(repeat)))
    elapsed = time.perf_counter() - started
    return summary([seconds for seconds in outcomes if seconds is not None], repeat, elapsed)


def summary(seconds: list[float], requests: int, elapsed: float) -> Measurement:
    """Percentiles of the answered requests.

    Raises:
        JobFailed: none was answered.
    """
    if not seconds:
        raise JobFailed(f"none of {requests} requests was answered; send a single one to see why")
    values = sorted(1000 * value for value in seconds)
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else values * 99
    return Measurement(
        requests=requests,
        errors=requests - len(seconds),
        requests_per_second=len(seconds) / elapsed,
        p50_ms=cuts[49],
        p90_ms=cuts[89],
        p99_ms=cuts[98],
        max_ms=values[-1],
    )

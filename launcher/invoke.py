"""Invokes an endpoint: one request that is answered at once, as a stream, or by way of S3."""

import hashlib
import mimetypes
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from botocore.exceptions import ClientError

from container import contract
from launcher.aws import Aws, refusals
from launcher.errors import AwsRefused, ConfigError, JobFailed, TimedOut
from launcher.jobs.api import s3_join, split_s3_uri, without_none

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


Mode = Literal["serverless", "real-time", "asynchronous"]
PAYLOAD_BYTES: dict[Mode, int] = {
    "serverless": contract.SERVERLESS_PAYLOAD_BYTES,
    "real-time": contract.REALTIME_PAYLOAD_BYTES,
    "asynchronous": contract.ASYNC_PAYLOAD_BYTES,
}
WAY: dict[Mode, str] = {  # to an endpoint of that mode
    "serverless": "a serverless endpoint",
    "real-time": "a real-time endpoint, without endpoint.serverless",
    "asynchronous": "an asynchronous one, with endpoint.asynchronous: true",
}
MODEL_ERRORS = frozenset({"ModelError", "ModelStreamError"})
NOT_IN_SERVICE = "ValidationError"  # or not there; the runtime API's words do not tell why
ASYNC_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Request:
    """One invocation."""

    endpoint: str
    body: bytes
    content_type: str
    accept: str | None = None
    target_variant: str | None = None
    target_model: str | None = None
    target_container: str | None = None
    """ContainerHostname, for several containers in direct mode."""
    session_id: str | None = None
    """`NEW_SESSION`, or the id that its answer named."""
    component: str | None = None
    """InferenceComponentName, for an endpoint that hosts several."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    body: bytes
    content_type: str
    variant: str
    seconds: float
    session_id: str | None = None
    """Of a session that this request has started."""


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
        JobFailed: the container answered with an error; its own words are in the message.
        AwsRefused: the service said no.
    """
    started = time.perf_counter()
    with container_errors(aws, request.endpoint):
        reply = aws.call("sagemaker-runtime", "InvokeEndpoint", **_arguments(request))
    body = reply["Body"].read()
    seconds = time.perf_counter() - started
    variant = reply.get("InvokedProductionVariant", "")
    return Answer(body, reply.get("ContentType", ""), variant, seconds, reply.get("NewSessionId"))


def stream(aws: Aws, request: Request) -> Iterator[bytes]:
    """Send one request and yield the answer's parts as they come.

    Raises:
        JobFailed: the container answered with an error, or broke off.
        AwsRefused: the service said no.
    """
    with container_errors(aws, request.endpoint):
        reply = aws.call("sagemaker-runtime", "InvokeEndpointWithResponseStream", **_arguments(request))
    with container_errors(aws, request.endpoint), refusals("InvokeEndpointWithResponseStream"):
        for event in reply["Body"]:
            yield event["PayloadPart"]["Bytes"]


def invoke_async(aws: Aws, request: Request, folder: str, timeout_seconds: float | None) -> tuple[str, bytes | None]:
    """Queue one request at an asynchronous endpoint.

    Args:
        aws: where the endpoint is.
        request: what to send; its body goes to S3 first.
        folder: S3 URI under which requests are kept.
        timeout_seconds: how long to wait for the answer; None does not wait.

    Returns:
        Where the answer lies, and the answer where it was waited for.

    Raises:
        JobFailed: the container answered with an error.
        TimedOut: there is no answer yet.
    """
    bucket, key = split_s3_uri(s3_join(folder, hashlib.sha256(request.body).hexdigest()[:32]))
    aws.call("s3", "PutObject", Bucket=bucket, Key=key, Body=request.body)
    arguments = {
        "EndpointName": request.endpoint,
        "InputLocation": f"s3://{bucket}/{key}",
        "ContentType": request.content_type,
        "Accept": request.accept,
    }
    reply = aws.call("sagemaker-runtime", "InvokeEndpointAsync", **without_none(arguments))
    if timeout_seconds is None:
        return reply["OutputLocation"], None
    deadline = time.monotonic() + timeout_seconds
    while True:
        answer = _object(aws, reply["OutputLocation"])
        if answer is not None:
            return reply["OutputLocation"], answer
        failure = _object(aws, reply["FailureLocation"]) if reply.get("FailureLocation") else None
        if failure is not None:
            raise JobFailed(f"the container failed on the request: {failure.decode('utf-8', 'replace')}")
        if time.monotonic() > deadline:
            raise TimedOut(f"no answer after {timeout_seconds:.0f} s; it will lie at {reply['OutputLocation']}")
        time.sleep(ASYNC_POLL_SECONDS)


def _object(aws: Aws, uri: str) -> bytes | None:
    bucket, key = split_s3_uri(uri)
    try:
        return aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in {"NoSuchKey", "404"}:
            return None
        with refusals("GetObject"):
            raise


def mode_of(aws: Aws, endpoint: str) -> Mode:
    """How an endpoint is asked, as the service describes it.

    Raises:
        AwsRefused: there is no such endpoint, or the caller may not look at it.
    """
    described = aws.call("sagemaker", "DescribeEndpoint", EndpointName=endpoint)
    if "AsyncInferenceConfig" in described:
        return "asynchronous"
    variants = described.get("ProductionVariants", [])
    return "serverless" if any("CurrentServerlessConfig" in variant for variant in variants) else "real-time"


def check_size(request: Request, mode: Mode = "real-time") -> None:
    """Refuse a body that an endpoint of this kind does not take, before it travels.

    Raises:
        ConfigError: it is too large; what takes more is in the message.
    """
    size = len(request.body)
    if size <= PAYLOAD_BYTES[mode]:
        return
    larger = [f"{WAY[other]} ({_megabytes(limit)})" for other, limit in PAYLOAD_BYTES.items() if limit >= size]
    way_out = ", or ".join(larger) or "split it, and let a transform job send the parts"
    raise ConfigError(
        f"the body has {size:,} bytes and a {mode} endpoint takes {PAYLOAD_BYTES[mode]:,} "
        f"({_megabytes(PAYLOAD_BYTES[mode])}); take {way_out}"
        if larger
        else f"the body has {size:,} bytes and no endpoint takes more than {_megabytes(PAYLOAD_BYTES[mode])}; {way_out}"
    )


def _megabytes(count: int) -> str:
    return f"{count // 2**20} MB"


def _arguments(request: Request) -> dict[str, Any]:
    return without_none(
        {
            "EndpointName": request.endpoint,
            "Body": request.body,
            "ContentType": request.content_type,
            "Accept": request.accept,
            "TargetVariant": request.target_variant,
            "TargetModel": request.target_model,
            "TargetContainerHostname": request.target_container,
            "InferenceComponentName": request.component,
            "SessionId": request.session_id,
        }
    )


@contextmanager
def container_errors(aws: Aws, endpoint: str) -> Iterator[None]:
    """Tell the container's errors from the service's; of a failure of the handler its words say too little.

    Raises:
        JobFailed: the container answered with an error.
        AwsRefused: the service said no.
    """
    try:
        yield
    except AwsRefused as error:
        why = f"; why: `python -m launcher explain {endpoint}{aws.flags}`"
        refused = AwsRefused(f"{error}{why}", error.code) if error.code == NOT_IN_SERVICE else error
        raise _container_error(error, why) or refused from error.__cause__


def _container_error(error: AwsRefused, why: str) -> JobFailed | None:
    cause = error.__cause__
    if not isinstance(cause, ClientError) or cause.response["Error"]["Code"] not in MODEL_ERRORS:
        return None
    response: Any = cause.response
    message = response.get("OriginalMessage") or cause.response["Error"]["Message"]
    status = response.get("OriginalStatusCode", "with an error")
    return JobFailed(f"the container answered {status}: {message}{why if status == 500 else ''}")

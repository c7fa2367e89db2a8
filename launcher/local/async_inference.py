"""Asynchronous invocations: a queue per endpoint, input and output as S3 objects."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from launcher.local.buckets import BucketError, Buckets, parse_s3_uri
from launcher.local.errors import ServiceError, ServiceUnavailable
from launcher.local.served_container import Reply
from launcher.local.serving import Invocation

logger = logging.getLogger(__name__)
DEFAULT_CONCURRENCY = 4  # "SageMaker chooses an optimal value" where MaxConcurrentInvocationsPerInstance is unset
DEFAULT_TIMEOUT_SECONDS = 900  # InvocationTimeoutSeconds: "the default is 15 minutes (900 seconds)"
DEFAULT_TTL_SECONDS = 21600  # RequestTTLSeconds: "6 hours (21,600 seconds)"
RETRY_SECONDS = 0.5  # while the instance is being replaced


@dataclass(frozen=True)
class AsyncRequest:
    """One queued invocation."""

    inference_id: str
    input_uri: str  # "" where the body came with the request
    headers: Mapping[str, str]
    output_uri: str
    failure_uri: str  # "" where the configuration has no S3FailurePath
    timeout_seconds: float
    expires: float  # epoch seconds


class AsyncQueue:
    """Runs the requests of one endpoint in their order, a few at a time."""

    def __init__(self, buckets: Buckets, config: Mapping[str, Any], invoke: Callable[[Invocation], Reply]) -> None:
        concurrency = config.get("ClientConfig", {}).get("MaxConcurrentInvocationsPerInstance", DEFAULT_CONCURRENCY)
        self._buckets = buckets
        self._invoke = invoke
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="async")
        self._ended = threading.Event()

    def submit(self, request: AsyncRequest, body: bytes | None) -> None:
        """Queue a request; its body is read from `input_uri` where it is None."""
        self._executor.submit(self._run, request, body)

    def end(self) -> None:
        """Start nothing new: what is queued gets its failure object."""
        self._ended.set()

    def join(self) -> None:
        """Wait until every request has its object."""
        self._executor.shutdown(wait=True)

    def _run(self, request: AsyncRequest, body: bytes | None) -> None:
        try:
            reply = self._answer(request, body)
            self._buckets.write(*parse_s3_uri(request.output_uri), reply.body, reply.content_type)
        except (ServiceError, BucketError) as error:
            self._fail(request, str(error))
        except Exception as error:
            logger.exception("async request %s", request.inference_id)
            self._fail(request, f"{type(error).__name__}: {error}")

    def _answer(self, request: AsyncRequest, body: bytes | None) -> Reply:
        if body is None:
            body = self._buckets.read(*parse_s3_uri(request.input_uri))
        invocation = Invocation(body, request.headers, request.timeout_seconds)
        while not self._ended.is_set():
            if time.time() > request.expires:
                raise ServiceUnavailable("The request was longer in the queue than its RequestTTLSeconds.")
            try:
                return checked(self._invoke(invocation))
            except ServiceUnavailable:
                self._ended.wait(RETRY_SECONDS)
        raise ServiceUnavailable("The endpoint was deleted, or the local SageMaker ended, before the request was run.")

    def _fail(self, request: AsyncRequest, reason: str) -> None:
        logger.warning("async request %s: %s", request.inference_id, reason)
        if not request.failure_uri:
            return
        try:
            self._buckets.write(*parse_s3_uri(request.failure_uri), reason.encode(), "text/plain")
        except BucketError:
            logger.exception("async request %s", request.inference_id)


def checked(reply: Reply) -> Reply:
    """The reply, if it says how long it is.

    Raises:
        ServiceError: it was sent in chunks.
    """
    if "Content-Length" not in reply.headers:
        raise ServiceError(
            "The primary container did not specify the required Content-Length header in its answer: "
            "asynchronous inference takes no chunked answers"
        )
    return reply

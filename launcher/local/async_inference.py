"""Asynchronous invocations: a queue per endpoint that outlives the server; input and output are S3 objects.

A request lies in a file from before its 202 until its output or failure object is written: `<home>/async/<endpoint>/`.
A server that was killed finds it there, and runs it again.
"""

import itertools
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.local.buckets import BucketError, Buckets, parse_s3_uri
from launcher.local.endpoint_metrics import COUNT, EndpointMetrics
from launcher.local.errors import ServiceError, ServiceUnavailable
from launcher.local.notifications import notify
from launcher.local.served_container import Reply
from launcher.local.serving import Invocation

logger = logging.getLogger(__name__)
DEFAULT_CONCURRENCY = 4  # "SageMaker chooses an optimal value" where MaxConcurrentInvocationsPerInstance is unset
DEFAULT_TIMEOUT_SECONDS = 900  # InvocationTimeoutSeconds: "the default is 15 minutes (900 seconds)"
DEFAULT_TTL_SECONDS = 21600  # RequestTTLSeconds: "6 hours (21,600 seconds)"
RETRY_SECONDS = 0.2  # while there is no instance
MAX_THREADS = 256
LATE = "The request was longer in the queue than its RequestTTLSeconds."
DELETED = "The endpoint was deleted, or could not be started, before the request was run."


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
    received: float = 0.0  # epoch seconds


@dataclass(frozen=True)
class QueueHost:
    """What a queue needs of its endpoint."""

    endpoint: str
    buckets: Buckets
    metrics: EndpointMetrics
    invoke: Callable[[Invocation], Reply]
    instances: Callable[[], int]
    """How many instances take requests now."""


class AsyncQueue:
    """Runs the requests of one endpoint in their order, a few at a time per instance."""

    def __init__(self, host: QueueHost, directory: Path, config: Mapping[str, Any]) -> None:
        self._host = host
        self._directory = directory
        self.configure(config)
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Path, AsyncRequest]] = deque()
        self._running: dict[Path, AsyncRequest] = {}
        self._ended = False
        self._numbers = itertools.count()
        self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="async")
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.json")):
            self._waiting.append((path, AsyncRequest(**json.loads(path.read_text()))))
        self._thread = threading.Thread(target=self._dispatch, name=f"queue {host.endpoint}", daemon=True)
        self._thread.start()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Take over an AsyncInferenceConfig, now that it is in service."""
        client = config.get("ClientConfig", {})
        self._per_instance: int = client.get("MaxConcurrentInvocationsPerInstance", DEFAULT_CONCURRENCY)
        self._topics: Mapping[str, str] = config["OutputConfig"].get("NotificationConfig", {})

    def submit(self, request: AsyncRequest, body: bytes | None) -> None:
        """Queue a request, on disk first; its body is read from `input_uri` where it is None."""
        path = self._directory / f"{time.time_ns():020}-{next(self._numbers):06}.json"
        if body is not None:
            path.with_suffix(".body").write_bytes(body)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(request)))
        temporary.replace(path)
        with self._changed:
            self._waiting.append((path, request))
            self._changed.notify_all()

    def end(self, fail: bool) -> None:
        """Start nothing new: what is queued gets its failure object, or stays on disk for the next server."""
        with self._changed:
            self._ended = True
            waiting = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for path, request in waiting if fail else ():
            self._fail(path, request, DELETED)

    def join(self) -> None:
        """Wait until every request that was running has its object, or is left to the next server."""
        self._thread.join()
        self._executor.shutdown(wait=True)

    def _dispatch(self) -> None:
        while True:
            with self._changed:
                if self._ended:
                    return
                late = [item for item in self._waiting if item[1].expires < time.time()]
                for item in late:
                    self._waiting.remove(item)
                if self._waiting and len(self._running) < self._per_instance * self._host.instances():
                    path, request = self._waiting.popleft()
                    self._running[path] = request
                    self._executor.submit(self._run, path, request)
                elif not late:
                    self._changed.wait(RETRY_SECONDS if self._waiting else None)
            for path, request in late:
                self._fail(path, request, LATE)

    def _run(self, path: Path, request: AsyncRequest) -> None:
        try:
            reply = self._answer(path, request)
            self._host.buckets.write(*parse_s3_uri(request.output_uri), reply.body, reply.content_type)
            self._done(path, request, "InvocationsProcessed")
            notify(self._topics.get("SuccessTopic"), self._host, request, reply)
        except ServiceUnavailable:
            self._put_back(path, request)
        except (ServiceError, BucketError) as error:
            if self._ended:  # its container was stopped with the server: the next one runs it again
                logger.info("async request %s waits for the next server: %s", request.inference_id, error)
            else:
                self._fail(path, request, str(error))
        except Exception as error:
            logger.exception("async request %s", request.inference_id)
            self._fail(path, request, f"{type(error).__name__}: {error}")
        finally:
            with self._changed:
                self._running.pop(path, None)
                self._changed.notify_all()

    def _answer(self, path: Path, request: AsyncRequest) -> Reply:
        if request.input_uri:
            body = self._host.buckets.read(*parse_s3_uri(request.input_uri))
        else:
            body = path.with_suffix(".body").read_bytes()
        return checked(self._host.invoke(Invocation(body, request.headers, request.timeout_seconds)))

    def _put_back(self, path: Path, request: AsyncRequest) -> None:
        with self._changed:
            if not self._ended:
                self._waiting.appendleft((path, request))
                self._changed.wait(RETRY_SECONDS)

    def _fail(self, path: Path, request: AsyncRequest, reason: str) -> None:
        logger.warning("async request %s: %s", request.inference_id, reason)
        if request.failure_uri:
            try:
                self._host.buckets.write(*parse_s3_uri(request.failure_uri), reason.encode(), "text/plain")
            except BucketError:
                logger.exception("async request %s", request.inference_id)
        self._done(path, request, "InvocationFailures")
        notify(self._topics.get("ErrorTopic"), self._host, request, reason)

    def _done(self, path: Path, request: AsyncRequest, metric: str) -> None:
        """Forget a request that has its object."""
        path.unlink(missing_ok=True)
        path.with_suffix(".body").unlink(missing_ok=True)
        milliseconds = (time.time() - request.received) * 1000
        self._put([(metric, 1.0, COUNT), ("TotalProcessingTime", milliseconds, "Milliseconds")])

    # --- metrics ----------------------------------------------------------------------------------------------------

    def put_gauges(self) -> None:
        """The backlog's metrics, as they are now."""
        with self._changed:
            requests = [request for _, request in self._waiting] + list(self._running.values())
            waiting = len(self._waiting)
        instances = self._host.instances()
        oldest = min((request.received for request in requests), default=time.time())
        values = [
            ("ApproximateBacklogSize", float(len(requests)), COUNT),
            ("HasBacklogWithoutCapacity", float(bool(waiting and not instances)), COUNT),
            ("ApproximateAgeOfOldestRequest", time.time() - oldest, "Seconds"),
        ]
        if instances:  # without one it has no value
            values.append(("ApproximateBacklogSizePerInstance", len(requests) / instances, COUNT))
        self._put(values)

    def _put(self, values: list[tuple[str, float, str]]) -> None:
        self._host.metrics.put((("EndpointName", self._host.endpoint),), values)


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

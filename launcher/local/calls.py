"""Calling the copies of one model: answers and errors as the service gives them, metrics, and stateful sessions."""

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from launcher.local.buckets import ACCOUNT
from launcher.local.endpoint_metrics import EndpointMetrics, Outcome, Source
from launcher.local.errors import ModelError
from launcher.local.served_container import InvocationBroken, InvocationTimeout, Reply, ServedContainer, StreamedReply
from launcher.local.serving import Invocation, ModelServer

FAILED_PINGS = 3  # in a row until an instance is replaced; the service's number is not documented
ORIGINAL_MESSAGE_CHARACTERS = 2048  # ModelError.OriginalMessage
NEW_SESSION_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"


class Instance:
    """One copy: its containers, and how many requests are under way on it."""

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self.in_flight = 0
        self._failed_pings = 0

    def is_broken(self) -> bool:
        """Look at it once: whether it has died, or pinged badly several times."""
        self._failed_pings = 0 if self.server.is_healthy() else self._failed_pings + 1
        return not self.server.is_alive or self._failed_pings >= FAILED_PINGS


class Sessions:
    """Which copy has which stateful session; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instances: dict[str, Instance] = {}

    def find(self, session_id: str) -> Instance | None:
        with self._lock:
            return self._instances.get(session_id)

    def keep(self, instance: Instance, reply: Reply | StreamedReply) -> None:
        """Begin or end what the answer's headers say."""
        opened, closed = reply.headers.get(NEW_SESSION_HEADER), reply.headers.get(CLOSED_SESSION_HEADER)
        if not (opened or closed):
            return
        with self._lock:
            if opened:
                self._instances[opened.partition(";")[0].strip()] = instance  # `<id>; Expires=…`
            if closed:
                self._instances.pop(closed.strip(), None)

    def forget(self, instances: Collection[Instance]) -> None:
        """End the sessions of copies that go."""
        with self._lock:
            self._instances = {key: item for key, item in self._instances.items() if item not in instances}


@dataclass(frozen=True)
class Calls:
    """How a model's copies are called."""

    metrics: EndpointMetrics
    source: Source
    sessions: Sessions
    copies: Callable[[], int]
    """How many there are now: each one's share of the invocations is a metric."""

    def invoke(self, instance: Instance, invocation: Invocation) -> Reply:
        """The model's answer.

        Raises:
            ModelError: the container answered with an error, or not in time.
            RuntimeValidationError: the invocation does not fit the model.
        """
        started = time.perf_counter()
        try:
            with self._failures(instance):
                reply, served = instance.server.invoke(invocation)
        except ModelError as error:
            self._record(invocation, error.members["OriginalStatusCode"], time.perf_counter() - started)
            raise
        self._record(invocation, reply.status, time.perf_counter() - started)
        self.sessions.keep(instance, reply)
        if reply.status >= 400:
            raise self.model_error(served, reply.status, reply.body.decode("utf-8", "replace"))
        return reply

    def stream(self, instance: Instance, invocation: Invocation) -> StreamedReply:
        """The model's answer as it comes; errors as `invoke`."""
        started = time.perf_counter()
        with self._failures(instance):
            reply, served = instance.server.stream(invocation)
        self._record(invocation, reply.status, time.perf_counter() - started)
        self.sessions.keep(instance, reply)
        if reply.status >= 400:
            raise self.model_error(served, reply.status, b"".join(reply.parts).decode("utf-8", "replace"))
        return reply

    def _record(self, invocation: Invocation, status: int, model_seconds: float) -> None:
        overhead = time.perf_counter() - invocation.received - model_seconds
        self.metrics.record(self.source, Outcome(status, model_seconds, overhead, self.copies()))

    @contextlib.contextmanager
    def _failures(self, instance: Instance) -> Iterator[None]:
        """A container that does not answer, as the service's error."""
        served = instance.server.containers[0]
        try:
            yield
        except InvocationTimeout as error:
            text = f"Your invocation timed out while waiting for a response from container {served.hostname}: {error}"
            raise self.model_error(served, 0, text) from error
        except InvocationBroken as error:
            raise self.model_error(served, 500, f"The container broke the connection: {error}") from error

    def model_error(self, served: ServedContainer, status: int, text: str) -> ModelError:
        """What the caller sees of a container's error."""
        kind = "client" if 400 <= status < 500 else "server"
        text = text[:ORIGINAL_MESSAGE_CHARACTERS]
        region = self.metrics.region
        group = served.log.group.replace("/", "$252F")
        console = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}"
        return ModelError(
            f'Received {kind} error ({status}) from {served.hostname} with message "{text}". '
            f"See {console}#logsV2:log-groups/log-group/{group} in account {ACCOUNT} for more information.",
            OriginalStatusCode=status,
            OriginalMessage=text,
            LogStreamArn=served.log.arn,
        )

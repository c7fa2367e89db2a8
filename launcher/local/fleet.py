"""Several copies of one model: started, watched, replaced, added and taken away, and called.

A production variant is a fleet of instances, an inference component a fleet of copies. A caller takes an instance
(`acquire`), invokes the model on it, and gives it back (`release`), so that an instance that is taken away knows when
its last request is done.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

from container import contract
from launcher.local.buckets import ACCOUNT
from launcher.local.containers import ContainerStartError
from launcher.local.endpoint_metrics import EndpointMetrics, Outcome, Source
from launcher.local.errors import JobFailed, ModelError, ServiceUnavailable
from launcher.local.logs import ENDPOINT_GROUP
from launcher.local.platform import Platform
from launcher.local.served_container import InvocationBroken, InvocationTimeout, Reply, ServedContainer, StreamedReply
from launcher.local.serving import Invocation, ModelServer, ServingPlan
from launcher.local.store import Document

logger = logging.getLogger(__name__)
FAILED_PINGS = 3  # in a row until an instance is replaced; the service's number is not documented
REPLACE_SECONDS = 5.0  # between two tries to replace an instance
ORIGINAL_MESSAGE_CHARACTERS = 2048  # ModelError.OriginalMessage
DRAIN_POLL_SECONDS = 0.05
NEW_SESSION_HEADER = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_SESSION_HEADER = "X-Amzn-SageMaker-Closed-Session-Id"


@dataclass(frozen=True)
class FleetPlan:
    """What a fleet's copies are, and what they are called."""

    title: str
    """In messages: `production variant A`."""
    name: str
    """Of containers and directories, with the copy's own id behind: `endpoint-A`."""
    log_folder: str
    """Of the copies' log streams: `A`, or `A/component`."""
    model: Callable[[], Document]
    """The model's document; raises JobFailed where there is none."""
    source: Source
    startup_seconds: float
    memory_mb: int = 0


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


class Fleet:
    """The copies of one model; safe to use from any thread."""

    def __init__(self, platform: Platform, plan: FleetPlan, metrics: EndpointMetrics) -> None:
        self.plan = plan
        self.desired = 0
        self._platform = platform
        self._metrics = metrics
        self._lock = threading.Lock()  # of the list, its counts and the sessions; never held for long
        self._instances: list[Instance] = []
        self._sessions: dict[str, Instance] = {}
        self._changing = threading.RLock()  # adding, taking away and replacing exclude each other
        self._next_try = 0.0

    # --- how many ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Copies that take requests."""
        return len(self._instances)

    @property
    def in_flight(self) -> int:
        with self._lock:
            return sum(instance.in_flight for instance in self._instances)

    def scale_to(self, count: int, is_cancelled: Callable[[], bool]) -> None:
        """Have so many copies: new ones are healthy, and those taken away have ended their requests, when this returns.

        Raises:
            JobFailed: a new one did not start; none of the new ones is left.
        """
        with self._changing:
            self.desired = count
            if count > self.size:
                self._add(count - self.size, is_cancelled)
            elif count < self.size:
                self._take_away(self.size - count, contract.INVOCATION_TIMEOUT_SECONDS)

    def _add(self, count: int, is_cancelled: Callable[[], bool]) -> None:
        with ThreadPoolExecutor(count) as executor:
            futures = [executor.submit(self._start, is_cancelled) for _ in range(count)]
        started = [future.result() for future in futures if future.exception() is None]
        failed = next((error for future in futures if (error := future.exception())), None)
        if failed is not None:
            for instance in started:
                instance.server.stop(0)
            raise failed
        with self._lock:
            self._instances += started

    def _take_away(self, count: int, drain_seconds: float) -> None:
        with self._lock:
            kept = len(self._instances) - count
            leaving, self._instances = self._instances[kept:], self._instances[:kept]
            self._sessions = {key: item for key, item in self._sessions.items() if item not in leaving}
        deadline = time.monotonic() + drain_seconds
        while any(instance.in_flight for instance in leaving) and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL_SECONDS)
        if leaving:
            with ThreadPoolExecutor(len(leaving)) as executor:
                list(executor.map(lambda instance: instance.server.stop(), leaving))

    def stop(self, drain: bool = False) -> None:
        """End every copy; what is under way ends first, or has the containers' grace."""
        with self._changing:
            self.desired = 0
            self._take_away(self.size, contract.INVOCATION_TIMEOUT_SECONDS if drain else 0.0)

    # --- one copy ---------------------------------------------------------------------------------------------------

    def _start(self, is_cancelled: Callable[[], bool]) -> Instance:
        """Start a copy and wait for its pings.

        Raises:
            JobFailed: with the service's sentence and the container's own last error line.
        """
        model = self.plan.model()
        instance = f"i-{uuid4().hex[:17]}"
        plan = ServingPlan(
            name=f"{self.plan.name}-{instance}",
            environment={},
            stream_name=lambda hostname: self._stream_name(model, instance, hostname),
            memory_mb=self.plan.memory_mb,
        )
        server = ModelServer(self._platform, model, plan)
        try:
            server.start()
            server.wait_until_ready(self.plan.startup_seconds, is_cancelled)
        except (JobFailed, ContainerStartError) as error:
            server.stop(0)
            raise JobFailed(self._start_failure(server, error)) from error
        return Instance(server)

    def _stream_name(self, model: Document, instance: str, hostname: str) -> tuple[str, str]:
        suffix = f"/{hostname}" if "Containers" in model else ""
        return f"{ENDPOINT_GROUP}/{self.plan.source.endpoint}", f"{self.plan.log_folder}/{instance}{suffix}"

    def _start_failure(self, server: ModelServer, error: Exception) -> str:
        if isinstance(error, ContainerStartError):
            return f"Failed to start the container of {self.plan.title}: {error}"
        if len(server.containers) < len(server.definitions):
            return str(error)  # the model's data
        return (
            f"The primary container for {self.plan.title} did not pass the ping health check. "
            f"Please check CloudWatch logs for this endpoint. The container: {error}"
        )

    def watch(self, is_cancelled: Callable[[], bool]) -> None:
        """Replace copies that have died, or pinged badly several times; not while others are added or taken away."""
        if not self._changing.acquire(blocking=False):
            return
        try:
            if not is_cancelled():
                self._replace_broken(is_cancelled)
        finally:
            self._changing.release()

    def _replace_broken(self, is_cancelled: Callable[[], bool]) -> None:
        broken = [instance for instance in self._instances if instance.is_broken()]
        with self._lock:
            self._instances = [instance for instance in self._instances if instance not in broken]
            self._sessions = {key: item for key, item in self._sessions.items() if item not in broken}
        for instance in broken:
            logger.warning("endpoint %s: replacing an instance of %s", self.plan.source.endpoint, self.plan.title)
            instance.server.stop()
        missing = self.desired - self.size
        if missing <= 0 or time.time() < self._next_try:
            return
        try:
            self._add(missing, is_cancelled)
        except JobFailed as error:
            self._next_try = time.time() + REPLACE_SECONDS
            logger.warning("endpoint %s: %s did not start: %s", self.plan.source.endpoint, self.plan.title, error)

    # --- requests ---------------------------------------------------------------------------------------------------

    def acquire(self, session_id: str = "") -> Instance:
        """The copy that takes a request: the session's, or the one with the fewest under way.

        Raises:
            ServiceUnavailable: there is none now.
        """
        with self._lock:
            if not self._instances:
                raise ServiceUnavailable("The instance of the endpoint is being replaced; try again.")
            known = self._sessions.get(session_id)
            instance = known or min(self._instances, key=lambda item: item.in_flight)
            instance.in_flight += 1
            return instance

    def release(self, instance: Instance) -> None:
        with self._lock:
            instance.in_flight -= 1

    def has_session(self, session_id: str) -> bool:
        with self._lock:
            return session_id in self._sessions

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
        self._keep_session(instance, reply)
        if reply.status >= 400:
            raise self.model_error(served, reply.status, reply.body.decode("utf-8", "replace"))
        return reply

    def stream(self, instance: Instance, invocation: Invocation) -> StreamedReply:
        """The model's answer as it comes; errors as `invoke`."""
        started = time.perf_counter()
        with self._failures(instance):
            reply, served = instance.server.stream(invocation)
        self._record(invocation, reply.status, time.perf_counter() - started)
        self._keep_session(instance, reply)
        if reply.status >= 400:
            raise self.model_error(served, reply.status, b"".join(reply.parts).decode("utf-8", "replace"))
        return reply

    def _record(self, invocation: Invocation, status: int, model_seconds: float) -> None:
        overhead = time.perf_counter() - invocation.received - model_seconds
        self._metrics.record(self.plan.source, Outcome(status, model_seconds, overhead, self.size))

    def _keep_session(self, instance: Instance, reply: Reply | StreamedReply) -> None:
        opened, closed = reply.headers.get(NEW_SESSION_HEADER), reply.headers.get(CLOSED_SESSION_HEADER)
        if not (opened or closed):
            return
        with self._lock:
            if opened:
                self._sessions[opened.partition(";")[0].strip()] = instance  # `<id>; Expires=…`
            if closed:
                self._sessions.pop(closed.strip(), None)

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
        region = self._platform.region
        group = served.log.group.replace("/", "$252F")
        console = f"https://{region}.console.aws.amazon.com/cloudwatch/home?region={region}"
        return ModelError(
            f'Received {kind} error ({status}) from {served.hostname} with message "{text}". '
            f"See {console}#logsV2:log-groups/log-group/{group} in account {ACCOUNT} for more information.",
            OriginalStatusCode=status,
            OriginalMessage=text,
            LogStreamArn=served.log.arn,
        )

    def deployed_images(self) -> list[Document]:
        """DeployedImages of a running copy."""
        running = self._instances[:1]
        return [
            {"SpecifiedImage": item["Image"], "ResolvedImage": item["Image"], "ResolutionTime": time.time()}
            for instance in running
            for item in instance.server.definitions
        ]

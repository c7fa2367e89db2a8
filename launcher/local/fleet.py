"""Several copies of one model: started, watched, replaced, added and taken away.

A production variant is a fleet of instances, an inference component a fleet of copies. A caller takes an instance
(`acquire`), calls the model on it (`calls`), and gives it back (`release`), so that an instance that is taken away
knows when its last request is done.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from uuid import uuid4

from container import contract
from launcher.local.calls import Calls, Instance, Sessions
from launcher.local.containers import ContainerStartError
from launcher.local.endpoint_metrics import EndpointMetrics, Source
from launcher.local.errors import JobFailed, ServiceUnavailable
from launcher.local.logs import ENDPOINT_GROUP
from launcher.local.platform import Platform
from launcher.local.serving import ModelServer, ServingPlan
from launcher.local.store import Document

logger = logging.getLogger(__name__)
REPLACE_SECONDS = 5.0  # between two tries to replace an instance
DRAIN_POLL_SECONDS = 0.05


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
    ended: threading.Event
    """Set when the fleet's endpoint or component ends: starts are given up, and nobody waits for requests any more."""
    memory_mb: int = 0


class Fleet:
    """The copies of one model; safe to use from any thread."""

    def __init__(self, platform: Platform, plan: FleetPlan, metrics: EndpointMetrics) -> None:
        self.plan = plan
        self.desired = 0
        self._platform = platform
        self._sessions = Sessions()
        self.calls = Calls(metrics, plan.source, self._sessions, lambda: self.size)
        self._lock = threading.Lock()  # of the list and its counts; never held for long
        self._instances: list[Instance] = []
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

    def scale_to(self, count: int) -> None:
        """Have so many copies: new ones are healthy, and those taken away have ended their requests, when this returns.

        Raises:
            JobFailed: a new one did not start; none of the new ones is left, and as many are desired as before.
        """
        with self._changing:
            before, self.desired = self.desired, count
            try:
                self._add(count - self.size)
            except BaseException:
                self.desired = before
                raise
            self._take_away(self.size - count, contract.INVOCATION_TIMEOUT_SECONDS)

    def _add(self, count: int) -> None:
        if count <= 0:
            return
        with ThreadPoolExecutor(count) as executor:
            futures = [executor.submit(self._start) for _ in range(count)]
        started = [future.result() for future in futures if future.exception() is None]
        failed = next((error for future in futures if (error := future.exception())), None)
        if failed is not None:
            for instance in started:
                instance.server.stop(0)
            raise failed
        with self._lock:
            self._instances += started

    def _take_away(self, count: int, drain_seconds: float) -> None:
        if count <= 0:
            return
        with self._lock:
            kept = len(self._instances) - count
            leaving, self._instances = self._instances[kept:], self._instances[:kept]
        self._sessions.forget(leaving)
        deadline = time.monotonic() + drain_seconds
        while any(instance.in_flight for instance in leaving) and time.monotonic() < deadline:
            if self.plan.ended.wait(DRAIN_POLL_SECONDS):
                break  # the containers' own grace is left
        with ThreadPoolExecutor(len(leaving)) as executor:
            list(executor.map(lambda instance: instance.server.stop(), leaving))

    def stop(self, drain: bool = False) -> None:
        """End every copy; what is under way ends first, or has the containers' grace."""
        with self._changing:
            self.desired = 0
            self._take_away(self.size, contract.INVOCATION_TIMEOUT_SECONDS if drain else 0.0)

    # --- one copy ---------------------------------------------------------------------------------------------------

    def _start(self) -> Instance:
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
            server.wait_until_ready(self.plan.startup_seconds, self.plan.ended.is_set)
        except BaseException as error:
            server.stop(0)
            if isinstance(error, JobFailed | ContainerStartError):
                raise JobFailed(self._start_failure(server, error)) from error
            raise
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

    def watch(self) -> None:
        """Replace copies that have died, or pinged badly several times; not while others are added or taken away."""
        if not self._changing.acquire(blocking=False):
            return
        try:
            if not self.plan.ended.is_set():
                self._replace_broken()
        finally:
            self._changing.release()

    def _replace_broken(self) -> None:
        broken = [instance for instance in self._instances if instance.is_broken()]
        with self._lock:
            self._instances = [instance for instance in self._instances if instance not in broken]
        self._sessions.forget(broken)
        for instance in broken:
            logger.warning("endpoint %s: replacing an instance of %s", self.plan.source.endpoint, self.plan.title)
            instance.server.stop()
        if time.time() < self._next_try:
            return
        try:
            self._add(self.desired - self.size)
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
            known = self._sessions.find(session_id)
            instance = known if known in self._instances else min(self._instances, key=lambda item: item.in_flight)
            instance.in_flight += 1
            return instance

    def release(self, instance: Instance) -> None:
        with self._lock:
            instance.in_flight -= 1

    def has_session(self, session_id: str) -> bool:
        return self._sessions.find(session_id) is not None

    def deployed_images(self) -> list[Document]:
        """DeployedImages of a running copy."""
        running = self._instances[:1]
        return [
            {
                "SpecifiedImage": served.container.spec.image,
                "ResolvedImage": served.container.image,
                "ResolutionTime": time.time(),
            }
            for instance in running
            for served in instance.server.containers
        ]

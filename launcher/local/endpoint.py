"""One running endpoint: which deployment gets which share of the requests, and how an update moves them."""

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from launcher.local.alarms import Alarms
from launcher.local.async_inference import AsyncQueue, QueueHost
from launcher.local.component import Component
from launcher.local.deployment import Deployment, deployed_members
from launcher.local.endpoint_metrics import EndpointMetrics
from launcher.local.errors import JobFailed, RuntimeValidationError
from launcher.local.fleet import Instance
from launcher.local.platform import Platform
from launcher.local.rollout import RolloutPlan
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import Invocation
from launcher.local.store import ENDPOINT, ENDPOINT_CONFIG, Document
from launcher.local.variant import variant_summary

logger = logging.getLogger(__name__)
WATCH_SECONDS = 2.0
BAKE_POLL_SECONDS = 0.1
RETAINED = ("DesiredInstanceCount", "DesiredWeight")


class RolledBack(Exception):
    """An update must be taken back; the text says why."""


class Served(Protocol):
    """What answers: a production variant, or an inference component."""

    name: str
    weight: float

    def release(self, instance: Instance) -> None: ...

    def invoke(self, instance: Instance, invocation: Invocation) -> Reply: ...

    def stream(self, instance: Instance, invocation: Invocation) -> StreamedReply: ...


@dataclass(frozen=True)
class Services:
    """What endpoints use beside the platform."""

    metrics: EndpointMetrics
    alarms: Alarms
    speed: float = 1.0
    """How many times shorter waits are; see `clock`."""


@dataclass(frozen=True)
class Update:
    """How an endpoint gets its next configuration."""

    plan: RolloutPlan = RolloutPlan()
    retained: Collection[str] = ()
    """Properties of the variants that stay: DesiredInstanceCount, DesiredWeight."""
    note: str | None = None
    """FailureReason of an endpoint that serves afterwards: why it does not serve what was asked for."""


class Endpoint:
    """The running side of one endpoint; its document in the store is what clients see."""

    def __init__(self, platform: Platform, services: Services, name: str) -> None:
        self._platform = platform
        self._services = services
        self.name = name
        self.queue: AsyncQueue | None = None  # of an asynchronous endpoint; it outlives an update
        self._lock = threading.Lock()  # of the routes, so that a request's instance is taken from what they say
        self._routes: list[tuple[float, Deployment]] = []
        self.components: dict[str, Component] = {}
        self._deleted = threading.Event()
        self._deploying = threading.Thread()
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    # --- deployments ------------------------------------------------------------------------------------------------

    def deploy(self, config_name: str, update: Update) -> None:
        """Start a configuration's variants in the background, and move the traffic to them as the plan says."""
        self._deploying = threading.Thread(target=self._deploy, args=(config_name, update), daemon=True)
        self._deploying.start()

    def _deploy(self, config_name: str, update: Update) -> None:
        config = self._platform.store.find(ENDPOINT_CONFIG, config_name) or {"EndpointConfigName": config_name}
        old = self._routes[-1][1] if self._routes else None
        fresh = Deployment(self._platform, self._services.metrics, self.name, config)
        document = self._platform.store.find(ENDPOINT, self.name) or {}
        fresh.retain(document.get("ProductionVariants", []), update.retained)
        self._ensure_queue(config)
        try:
            self._roll_out(old, fresh, update.plan)
        except (JobFailed, RolledBack) as error:
            self._roll_back(old, fresh, str(error))
            return
        if old is not None:
            old.stop(drain=True)
        self._update(**deployed_members(fresh) | {"FailureReason": update.note})

    def _ensure_queue(self, config: Document) -> None:
        if self.queue is None and "AsyncInferenceConfig" in config:
            directory = self._platform.home / "async" / self.name
            host = QueueHost(
                self.name, self._platform.buckets, self._services.metrics, self._invoke_queued, self._instances
            )
            self.queue = AsyncQueue(host, directory, config["AsyncInferenceConfig"])

    def _roll_out(self, old: Deployment | None, fresh: Deployment, plan: RolloutPlan) -> None:
        """Bring the new deployment into service beside the old one, which may be stopped afterwards.

        Raises:
            JobFailed: the new one did not start.
            RolledBack: an alarm went off, or the time is over.
        """
        deadline = time.monotonic() + plan.timeout_seconds / self._services.speed
        self._tell(fresh, "Creating", 0.0)
        if old is None or not plan.rolling:
            fresh.start(self._deleted.is_set)
        for share in plan.shares if old is not None else (1.0,):
            if plan.rolling and old is not None:
                fresh.resize(share, self._deleted.is_set)
            self._tell(fresh, "ActivatingTraffic", share)
            self._route((share, fresh), (1 - share, old))
            if plan.rolling and old is not None:
                old.resize(1 - share, self._deleted.is_set)
            if old is not None:
                self._tell(fresh, "Baking", share)
                self._bake(plan.wait_seconds, plan, deadline)
        self._bake(plan.termination_wait_seconds if old is not None else 0.0, plan, deadline)

    def _bake(self, seconds: float, plan: RolloutPlan, deadline: float) -> None:
        """Wait, looking at the alarms.

        Raises:
            RolledBack: one of them is in ALARM, or the update's time is over.
        """
        end = time.monotonic() + seconds / self._services.speed
        while True:
            ringing = self._services.alarms.ringing(plan.alarms)
            if ringing:
                raise RolledBack(f"One or more configured alarms went into ALARM state: {', '.join(ringing)}.")
            if time.monotonic() > deadline:
                raise RolledBack(f"The deployment did not end within its {plan.timeout_seconds:g} seconds.")
            left = end - time.monotonic()
            if left <= 0 or self._deleted.wait(min(left, BAKE_POLL_SECONDS)):
                return

    def _roll_back(self, old: Deployment | None, fresh: Deployment, reason: str) -> None:
        """Let the old deployment serve alone again; a first deployment that fails, fails the endpoint."""
        if old is None:
            self._route()
            fresh.stop()
            self._update(EndpointStatus="Failed", FailureReason=reason, PendingDeploymentSummary=None)
            if self.queue is not None:
                self.queue.end(fail=True)
                self.queue = None
            return
        self._update(EndpointStatus="RollingBack", FailureReason=reason)
        try:
            old.start(self._deleted.is_set)  # all of it: a rolling update has taken instances away
        except JobFailed as error:
            if all(deployment is not fresh for _, deployment in self._routes):
                fresh.stop()
            text = f"{reason} The rollback failed: {error}"
            self._update(EndpointStatus="UpdateRollbackFailed", FailureReason=text, PendingDeploymentSummary=None)
            return
        self._route((1.0, old))
        fresh.stop(drain=True)
        self._update(**deployed_members(old) | {"FailureReason": reason})

    def _route(self, *routes: tuple[float, Deployment | None]) -> None:
        kept = [(share, deployment) for share, deployment in routes if deployment is not None and share > 0]
        with self._lock:
            # the old one last, as what a rollback goes back to
            self._routes = kept

    def _tell(self, fresh: Deployment, status: str, share: float) -> None:
        """PendingDeploymentSummary: what an update is doing."""
        speed = self._services.speed
        message = f"{share:.0%} of the traffic" + (f"; waits are {speed:g} times shorter" if speed != 1 else "")
        document = self._platform.store.find(ENDPOINT, self.name) or {}
        started = document.get("PendingDeploymentSummary", {}).get("StartTime", time.time())
        summary = {
            "EndpointConfigName": fresh.config["EndpointConfigName"],
            "ProductionVariants": [variant_summary(variant, status, message) for variant in fresh.variants],
            "StartTime": started,
        }
        self._update(PendingDeploymentSummary=summary)

    def _update(self, **members: Any) -> None:
        if self._deleted.is_set():
            return
        present = self._platform.store.find(ENDPOINT, self.name) or {}
        kept = {name: value for name, value in members.items() if value is not None or name in present}
        self._platform.store.update(ENDPOINT, self.name, **kept)

    # --- requests ---------------------------------------------------------------------------------------------------

    def invoke(self, invocation: Invocation, target_variant: str | None) -> tuple[Reply, str]:
        """Answer a request; copies go to the shadows, what the sampling picks is captured.

        Returns:
            The answer, and the name of the variant that gave it.

        Raises:
            ServiceError: see `Variant.acquire` and `Variant.invoke`; RuntimeValidationError also where nothing is in
                service, or the endpoint is asynchronous.
        """
        self._check_synchronous()
        return self._invoke(invocation, target_variant)

    def _invoke(self, invocation: Invocation, target_variant: str | None) -> tuple[Reply, str]:
        deployment, served, instance = self._take(invocation, target_variant)
        try:
            deployment.copy_to_shadows(invocation, served.weight)
            reply = served.invoke(instance, invocation)
        finally:
            served.release(instance)
        deployment.capture(served.name, invocation, reply)
        return reply, served.name

    def stream(self, invocation: Invocation, target_variant: str | None) -> tuple[StreamedReply, str]:
        """Answer a request bit by bit; errors as `invoke`. The instance is taken until the last bit."""
        self._check_synchronous()
        _, served, instance = self._take(invocation, target_variant)
        try:
            reply = served.stream(instance, invocation)
        except BaseException:
            served.release(instance)
            raise
        parts = until_the_end(reply.parts, lambda: served.release(instance))
        return replace(reply, parts=parts), served.name

    def place(self, document: Document) -> None:
        """Start an inference component, in the background."""
        component = Component(self._platform, self._services.metrics, document)
        self.components[component.component] = component
        component.change(None, document["RuntimeConfig"]["DesiredCopyCount"])

    def _invoke_queued(self, invocation: Invocation) -> Reply:
        return self._invoke(invocation, None)[0]

    def _take(self, invocation: Invocation, target_variant: str | None) -> tuple[Deployment, Served, Instance]:
        """Choose what answers and take it, in one step: an update that moves the traffic waits for what was taken."""
        with self._lock:
            deployment = self._choose(invocation, target_variant)
            if invocation.component:
                component = self._component(invocation.component)
                return deployment, component, component.acquire(invocation)
            return deployment, *deployment.take(invocation, target_variant)

    def _component(self, name: str) -> Component:
        component = self.components.get(name)
        if component is None:
            raise RuntimeValidationError(f"Inference Component {name} not found on endpoint {self.name}.")
        return component

    def _choose(self, invocation: Invocation, target_variant: str | None) -> Deployment:
        if not self._routes:
            raise RuntimeValidationError(f"Endpoint {self.name} is not in service.")
        fitting = self._routes
        if target_variant is not None:
            fitting = [route for route in fitting if route[1].find(target_variant)] or fitting
        if invocation.session_id:
            fitting = [route for route in fitting if route[1].has_session(invocation.session_id)] or fitting
        return random.choices([route[1] for route in fitting], [route[0] for route in fitting])[0]

    def _check_synchronous(self) -> None:
        if self._routes and self.queue is not None:
            raise RuntimeValidationError(f"Endpoint {self.name} is asynchronous: use InvokeEndpointAsync.")

    def _instances(self) -> int:
        return sum(deployment.instances for _, deployment in self._routes)

    # --- what is in service -----------------------------------------------------------------------------------------

    def deployment(self) -> Deployment:
        """What is in service; during an update, what was before.

        Raises:
            RuntimeValidationError: nothing yet, or no more.
        """
        routes = self._routes
        if not routes:
            raise RuntimeValidationError(f"Endpoint {self.name} is not in service.")
        return routes[-1][1]

    def set_weights(self, desired: Sequence[Mapping[str, Any]]) -> None:
        """Move traffic between the variants."""
        variants = self.deployment().variants
        for item in desired:
            for variant in variants:
                if variant.name == item["VariantName"] and "DesiredWeight" in item:
                    variant.weight = float(item["DesiredWeight"])
        self._update(ProductionVariants=[variant_summary(variant) for variant in variants])

    def capacity(self, variant_name: str) -> int | None:
        """How many instances a variant should have; None while that cannot be changed, or there is no such variant."""
        document = self._platform.store.find(ENDPOINT, self.name)
        variant = self.deployment().find(variant_name) if self._routes else None
        if variant is None or document is None or document["EndpointStatus"] != "InService":
            return None
        return variant.asked

    def scale(self, counts: Mapping[str, int]) -> None:
        """Change the number of instances of variants, in the background; the endpoint is `Updating` meanwhile."""
        self._update(EndpointStatus="Updating")
        self._deploying = threading.Thread(target=self._scale, args=(dict(counts),), daemon=True)
        self._deploying.start()

    def _scale(self, counts: Mapping[str, int]) -> None:
        deployment, reason = self.deployment(), None
        for variant in deployment.variants:
            if variant.name not in counts:
                continue
            before = variant.fleet.size
            try:
                variant.scale_to(counts[variant.name], self._deleted.is_set)
            except JobFailed as error:
                variant.scale_to(before, self._deleted.is_set)
                reason = str(error)
        summaries = [variant_summary(variant) for variant in deployment.variants]
        self._update(EndpointStatus="InService", ProductionVariants=summaries, FailureReason=reason)

    def put_gauges(self) -> None:
        """Put what is measured at moments, not at invocations, into CloudWatch."""
        for _, deployment in self._routes:
            for variant in deployment.variants:
                if variant.fleet.size:
                    dimensions = variant.fleet.plan.source.dimensions()[0]
                    concurrent = variant.fleet.in_flight / variant.fleet.size
                    self._services.metrics.put(dimensions, [("ConcurrentRequestsPerModel", concurrent, "Count")])
        for component in list(self.components.values()):
            component.put_gauges()
        if self.queue is not None and self._routes:
            self.queue.put_gauges()

    def _watch(self) -> None:
        while not self._deleted.wait(WATCH_SECONDS):
            for _, deployment in self._routes:
                deployment.watch(self._deleted.is_set)
            for component in list(self.components.values()):
                component.watch(self._deleted.is_set)

    def stop(self, fail_queued: bool) -> None:
        """End every variant; a deployment under way is cancelled.

        Args:
            fail_queued: whether what waits in the queue gets its failure object, or waits for the next server.
        """
        self._deleted.set()
        if self._deploying.ident is not None:
            self._deploying.join()
        if self.queue is not None:
            self.queue.end(fail_queued)
        with self._lock:
            routes, self._routes = self._routes, []
        for _, deployment in routes:
            deployment.stop()
        for component in self.components.values():
            component.stop()
        if self.queue is not None:
            self.queue.join()


def until_the_end(parts: Iterator[bytes], done: Callable[[], None]) -> Iterator[bytes]:
    """The parts, and a call when the last one has been taken, or the reader has gone."""
    try:
        yield from parts
    finally:
        done()

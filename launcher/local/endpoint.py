"""One running endpoint: its requests, its queue, its components, and the changes that go on in the background."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from launcher.local.async_inference import AsyncQueue, QueueHost
from launcher.local.changes import Changes
from launcher.local.clock import Heartbeat
from launcher.local.component import Component
from launcher.local.deployment import Deployment
from launcher.local.errors import RuntimeValidationError
from launcher.local.platform import Platform, together
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import Invocation
from launcher.local.store import ENDPOINT, ENDPOINT_CONFIG, Document
from launcher.local.traffic import Traffic
from launcher.local.updater import Services, Update, Updater

WATCH_SECONDS = 2.0


class Endpoint:
    """The running side of one endpoint; its document in the store is what clients see."""

    def __init__(self, platform: Platform, services: Services, name: str) -> None:
        self._platform = platform
        self._services = services
        self.name = name
        self.queue: AsyncQueue | None = None  # of an asynchronous endpoint; it outlives an update
        self._traffic = Traffic(name)
        self._changes = Changes(f"endpoint {name}", lambda reason: self._updater.on_defect(reason))
        self._updater = Updater(platform, services, name, self._traffic, self._changes.ended)
        self._watcher = Heartbeat(WATCH_SECONDS, [self._watch])
        self._watcher.start()

    # --- changes ----------------------------------------------------------------------------------------------------

    def deploy(self, config_name: str, update: Update) -> None:
        """Start a configuration's variants in the background, and move the traffic to them as the plan says."""
        self._changes.submit(partial(self._deploy, config_name, update))

    def _deploy(self, config_name: str, update: Update) -> None:
        config = self._platform.store.find(ENDPOINT_CONFIG, config_name) or {"EndpointConfigName": config_name}
        self._ensure_queue(config)
        self._updater.deploy(config, update)
        deployment = self._traffic.in_service
        if self.queue is None or self._changes.ended.is_set():
            return
        if deployment is None:
            self.queue.end(fail=True)
            self.queue = None
        elif "AsyncInferenceConfig" in deployment.config:
            self.queue.configure(deployment.config["AsyncInferenceConfig"])

    def _ensure_queue(self, config: Document) -> None:
        if self.queue is None and "AsyncInferenceConfig" in config:
            directory = self._platform.home / "async" / self.name
            host = QueueHost(
                self.name, self._platform.buckets, self._services.metrics, self._invoke_queued, self._instances
            )
            self.queue = AsyncQueue(host, directory, config["AsyncInferenceConfig"])

    def set_weights(self, desired: Sequence[Mapping[str, Any]]) -> None:
        """Move traffic between the variants; errors as `deployment`."""
        self._updater.set_weights(self.deployment(), desired)

    def capacity(self, variant_name: str) -> int | None:
        """How many instances a variant should have; None while that cannot be changed, or there is no such variant."""
        document, deployment = self._platform.store.find(ENDPOINT, self.name), self._traffic.in_service
        variant = deployment.find(variant_name) if deployment is not None else None
        if variant is None or document is None or document["EndpointStatus"] != "InService":
            return None
        return variant.asked

    def scale(self, counts: Mapping[str, int]) -> None:
        """Change the number of instances of variants, in the background; the endpoint is `Updating` meanwhile."""
        self._updater.update(EndpointStatus="Updating")
        self._changes.submit(partial(self._updater.scale, dict(counts)))

    # --- inference components ---------------------------------------------------------------------------------------

    def place(self, document: Document) -> None:
        """Start an inference component, in the background."""
        component = Component(self._platform, self._services.metrics, document)
        self._traffic.components[component.component] = component
        component.change(None, document["RuntimeConfig"]["DesiredCopyCount"])

    def component(self, name: str) -> Component | None:
        return self._traffic.components.get(name)

    def forget_component(self, name: str) -> None:
        """Drop a component that has been stopped."""
        self._traffic.components.pop(name, None)

    # --- requests ---------------------------------------------------------------------------------------------------

    def invoke(self, invocation: Invocation, target_variant: str | None) -> tuple[Reply, str]:
        """Answer a request; copies go to the shadows, what the sampling picks is captured.

        Returns:
            The answer, and the name of the variant that gave it.

        Raises:
            ServiceError: see `Traffic.take` and `Variant.invoke`; RuntimeValidationError also where the endpoint is
                asynchronous.
        """
        self._check_synchronous()
        return self._invoke(invocation, target_variant)

    def _invoke(self, invocation: Invocation, target_variant: str | None) -> tuple[Reply, str]:
        deployment, served, instance = self._traffic.take(invocation, target_variant)
        try:
            deployment.copy_to_shadows(invocation, served.weight)
            reply = served.invoke(instance, invocation)
        finally:
            served.release(instance)
        deployment.capture(served.name, invocation, reply)
        return reply, served.name

    def _invoke_queued(self, invocation: Invocation) -> Reply:
        return self._invoke(invocation, None)[0]

    def stream(self, invocation: Invocation, target_variant: str | None) -> tuple[StreamedReply, str]:
        """Answer a request bit by bit; errors as `invoke`. The instance is taken until the last bit."""
        self._check_synchronous()
        _, served, instance = self._traffic.take(invocation, target_variant)
        try:
            reply = served.stream(instance, invocation)
        except BaseException:
            served.release(instance)
            raise
        parts = until_the_end(reply.parts, lambda: served.release(instance))
        return replace(reply, parts=parts), served.name

    def _check_synchronous(self) -> None:
        if self.queue is not None and self._traffic.in_service is not None:
            raise RuntimeValidationError(f"Endpoint {self.name} is asynchronous: use InvokeEndpointAsync.")

    # --- what is in service -----------------------------------------------------------------------------------------

    def deployment(self) -> Deployment:
        """What is in service; during an update, what was before.

        Raises:
            RuntimeValidationError: nothing yet, or no more.
        """
        deployment = self._traffic.in_service
        if deployment is None:
            raise RuntimeValidationError(f"Endpoint {self.name} is not in service.")
        return deployment

    def _instances(self) -> int:
        return sum(deployment.instances for deployment in self._traffic.deployments)

    def put_gauges(self) -> None:
        """Put what is measured at moments, not at invocations, into CloudWatch."""
        for deployment in self._traffic.deployments:
            for variant in deployment.variants:
                if variant.fleet.size:
                    dimensions = variant.fleet.plan.source.dimensions()[0]
                    concurrent = variant.fleet.in_flight / variant.fleet.size
                    self._services.metrics.put(dimensions, [("ConcurrentRequestsPerModel", concurrent, "Count")])
        for component in list(self._traffic.components.values()):
            component.put_gauges()
        if self.queue is not None and self._traffic.in_service is not None:
            self.queue.put_gauges()

    def _watch(self) -> None:
        for deployment in self._traffic.deployments:
            deployment.watch()
        for component in list(self._traffic.components.values()):
            component.watch()

    def stop(self, fail_queued: bool) -> None:
        """End every container; a change under way is cancelled. Who comes while another one does it, waits for that.

        Args:
            fail_queued: whether what waits in the queue gets its failure object, or waits for the next server.
        """
        self._changes.end()
        if self.queue is not None:
            self.queue.end(fail_queued)
        self._traffic.move()
        components = list(self._traffic.components.values())
        ends = [deployment.stop for deployment in self._updater.deployments]
        together([*ends, *(component.stop for component in components)], lambda end: end())
        self._watcher.stop()
        if self.queue is not None:
            self.queue.join()


def until_the_end(parts: Iterator[bytes], done: Callable[[], None]) -> Iterator[bytes]:
    """The parts, and a call when the last one has been taken, or the reader has gone."""
    try:
        yield from parts
    finally:
        done()

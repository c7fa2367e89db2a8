"""One inference component: copies of a model on an endpoint's instances, asked for by its own name."""

import time
from functools import partial

from container import contract
from launcher.local.calls import Instance
from launcher.local.changes import Changes
from launcher.local.endpoint_metrics import COUNT, EndpointMetrics, Source
from launcher.local.errors import JobFailed, RuntimeValidationError, ServiceUnavailable
from launcher.local.fleet import Fleet, FleetPlan
from launcher.local.platform import Platform
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import Invocation
from launcher.local.store import INFERENCE_COMPONENT, MODEL, Document

NO_CAPACITY = (
    "Inference Component has no capacity to process this request. ApplicationAutoScaling may be in-progress "
    "(if configured) or try to increase the capacity by invoking UpdateInferenceComponentRuntimeConfig API."
)


class Component:
    """The running side of one inference component; its document in the store is what clients see."""

    weight = 1.0  # of the requests that shadow variants get copies of: all

    def __init__(self, platform: Platform, metrics: EndpointMetrics, document: Document) -> None:
        self._platform = platform
        self._metrics = metrics
        self.component: str = document["InferenceComponentName"]
        self.endpoint: str = document["EndpointName"]
        self.name: str = document["VariantName"]
        self._changes = Changes(f"inference component {self.component}", self._on_defect)
        self._fleet = Fleet(platform, self._plan(document["Requested"]), metrics)

    def _plan(self, specification: Document) -> FleetPlan:
        startup = specification.get("StartupParameters", {})
        return FleetPlan(
            title=f"inference component {self.component}",
            name=f"{self.endpoint}-{self.component}",
            log_folder=f"{self.name}/{self.component}",
            model=lambda: component_model(self._platform, specification),
            source=Source(self.endpoint, self.name, "", self.component),
            startup_seconds=float(
                startup.get("ContainerStartupHealthCheckTimeoutInSeconds", contract.STARTUP_TIMEOUT_SECONDS)
            ),
            ended=self._changes.ended,
            memory_mb=specification["ComputeResourceRequirements"].get("MaxMemoryRequiredInMb", 0),
        )

    # --- changes ----------------------------------------------------------------------------------------------------

    def change(self, specification: Document | None, copies: int) -> None:
        """Run so many copies, of another specification where one is given, in the background."""
        self._changes.submit(partial(self._change, specification, copies))

    def _change(self, specification: Document | None, copies: int) -> None:
        try:
            if specification is None:
                self._scale(self._fleet, copies)
            else:
                self._replace(specification, copies)
        except JobFailed as error:
            self._on_defect(str(error))
            return
        self._update("InService", FailureReason=None)

    def _on_defect(self, reason: str) -> None:
        """Say so when a change broke off: what has served goes on serving."""
        self._update("InService" if self._fleet.size else "Failed", FailureReason=reason)

    def _scale(self, fleet: Fleet, copies: int) -> None:
        fleet.scale_to(min(copies, self._platform.max_instances))

    def _replace(self, specification: Document, copies: int) -> None:
        """New copies beside the old ones, which go when they have answered what they were asked."""
        fresh = Fleet(self._platform, self._plan(specification), self._metrics)
        self._scale(fresh, copies)
        old, self._fleet = self._fleet, fresh
        self._update("Updating", Requested=specification, Specification=specification_summary(specification))
        old.stop(drain=True)

    def _update(self, status: str, **members: object) -> None:
        document = self._platform.store.find(INFERENCE_COMPONENT, self.component)
        if document is None or self._changes.ended.is_set():
            return
        kept = {key: value for key, value in members.items() if value is not None or key in document}
        counts = {**document["RuntimeConfig"], "CurrentCopyCount": self._fleet.size}
        self._platform.store.update(
            INFERENCE_COMPONENT, self.component, InferenceComponentStatus=status, RuntimeConfig=counts, **kept
        )

    def watch(self) -> None:
        self._fleet.watch()

    def stop(self) -> None:
        """End every copy, which has its grace for what is under way; a change under way is cancelled."""
        self._changes.end()
        self._fleet.stop()

    # --- requests ---------------------------------------------------------------------------------------------------

    def acquire(self, invocation: Invocation) -> Instance:
        """The copy that takes a request.

        Raises:
            RuntimeValidationError: there is none; the metric that wakes a component up counts it.
        """
        try:
            return self._fleet.acquire(invocation.session_id)
        except ServiceUnavailable as error:
            dimensions = (("InferenceComponentName", self.component),)
            self._metrics.put(dimensions, [("NoCapacityInvocationFailures", 1.0, COUNT)])
            raise RuntimeValidationError(NO_CAPACITY) from error

    def release(self, instance: Instance) -> None:
        self._fleet.release(instance)

    def invoke(self, instance: Instance, invocation: Invocation) -> Reply:
        return self._fleet.calls.invoke(instance, invocation)

    def stream(self, instance: Instance, invocation: Invocation) -> StreamedReply:
        return self._fleet.calls.stream(instance, invocation)

    def put_gauges(self) -> None:
        """Requests under way on each copy, as they are now."""
        if self._fleet.size:
            concurrent = self._fleet.in_flight / self._fleet.size
            dimensions = (("InferenceComponentName", self.component),)
            self._metrics.put(dimensions, [("ConcurrentRequestsPerCopy", concurrent, COUNT)])


def component_model(platform: Platform, specification: Document) -> Document:
    """What a copy runs, as a model's document.

    Raises:
        JobFailed: its model has been deleted.
    """
    container = specification.get("Container")
    if container is not None:
        definition = {"Image": container["Image"], "Environment": container.get("Environment", {})}
        if "ArtifactUrl" in container:
            definition["ModelDataUrl"] = container["ArtifactUrl"]
        return {"PrimaryContainer": definition}
    model = platform.store.find(MODEL, specification["ModelName"])
    if model is None:
        raise JobFailed(f'Could not find model "{specification["ModelName"]}".')
    return model


def specification_summary(specification: Document) -> Document:
    """InferenceComponentSpecificationSummary of what was asked for."""
    container = specification.get("Container")
    if container is None:
        return specification
    image = {"SpecifiedImage": container["Image"], "ResolvedImage": container["Image"], "ResolutionTime": time.time()}
    rest = {key: value for key, value in container.items() if key != "Image"}
    return {**specification, "Container": {"DeployedImage": image, **rest}}

"""One production or shadow variant of an endpoint: its instances, its weight, the limits of serverless inference."""

import threading
import time
from math import ceil

from container import contract
from launcher.local.calls import Instance
from launcher.local.endpoint_metrics import EndpointMetrics, Source
from launcher.local.errors import JobFailed, RuntimeValidationError, Throttled
from launcher.local.fleet import Fleet, FleetPlan
from launcher.local.platform import Platform
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import Invocation
from launcher.local.store import MODEL, Document

MAX_INVOCATIONS = 10_000  # at once on a variant: the HTTP server's threads are the limit
SERVERLESS_STARTUP_SECONDS = 180  # "model download plus first healthy ping within 3 minutes"


class Variant:
    """One production variant of one endpoint configuration."""

    def __init__(
        self,
        platform: Platform,
        metrics: EndpointMetrics,
        source: Source,
        definition: Document,
        ended: threading.Event,
    ) -> None:
        self.name: str = definition["VariantName"]
        self.definition = definition
        self.weight = float(definition.get("InitialVariantWeight", 1.0))
        self.serverless: Document = definition.get("ServerlessConfig", {})
        self._free_slots = threading.Semaphore(self.serverless.get("MaxConcurrency", MAX_INVOCATIONS))
        self._platform = platform
        self.asked = 1 if self.serverless else int(definition.get("InitialInstanceCount", 1))
        self.fleet = Fleet(
            platform,
            FleetPlan(
                title=f"production variant {self.name}",
                name=f"{source.endpoint}-{self.name}",
                log_folder=self.name,
                model=self._model,
                source=source,
                startup_seconds=self.startup_seconds,
                ended=ended,
                memory_mb=self.serverless.get("MemorySizeInMB", 0),
            ),
            metrics,
        )

    @property
    def startup_seconds(self) -> float:
        default = SERVERLESS_STARTUP_SECONDS if self.serverless else contract.STARTUP_TIMEOUT_SECONDS
        return float(self.definition.get("ContainerStartupHealthCheckTimeoutInSeconds", default))

    @property
    def hosts_components(self) -> bool:
        """Whether its instances wait for inference components instead of running a model of its own."""
        return "ModelName" not in self.definition

    def _model(self) -> Document:
        model = self._platform.store.find(MODEL, self.definition["ModelName"])
        if model is None:
            raise JobFailed(f'Could not find model "{self.definition["ModelName"]}".')
        return model

    def scale_to(self, asked: int) -> None:
        """Run so many instances, or as many as this machine may.

        Raises:
            JobFailed: see `Fleet.scale_to`.
        """
        self.asked = asked
        self.resize(1.0)

    def resize(self, share: float) -> None:
        """Run a share of the instances that are asked for, as a rolling update does; errors as `scale_to`."""
        if not self.hosts_components:
            count = min(self.asked, self._platform.max_instances)
            self.fleet.scale_to(ceil(round(share * count, 3)))  # a third three times is a whole

    def start(self) -> None:
        """Start the instances that are asked for; errors as `scale_to`."""
        self.scale_to(self.asked)

    def acquire(self, invocation: Invocation) -> Instance:
        """The instance that takes a request; `release` gives it back.

        Raises:
            Throttled: a serverless variant has no free slot.
            RuntimeValidationError: the body is too large, or an inference component must be named.
            ServiceUnavailable: there is no instance now.
        """
        if self.hosts_components:
            raise RuntimeValidationError(
                f"Variant {self.name} has no model of its own: name an inference component (InferenceComponentName)."
            )
        if self.serverless and len(invocation.body) > contract.SERVERLESS_PAYLOAD_BYTES:
            raise RuntimeValidationError("Body exceeds 4 MB, the limit of a serverless endpoint.")
        if not self._free_slots.acquire(blocking=False):
            raise Throttled(f"Rate exceeded: variant {self.name} takes {self.serverless['MaxConcurrency']} at a time.")
        try:
            return self.fleet.acquire(invocation.session_id)
        except BaseException:
            self._free_slots.release()
            raise

    def release(self, instance: Instance) -> None:
        self.fleet.release(instance)
        self._free_slots.release()

    def invoke(self, instance: Instance, invocation: Invocation) -> Reply:
        """The model's answer; errors as `Calls.invoke`; ModelError for one too large for serverless inference."""
        reply = self.fleet.calls.invoke(instance, invocation)
        if self.serverless and len(reply.body) > contract.SERVERLESS_PAYLOAD_BYTES:
            text = f"The answer of {len(reply.body)} bytes is over 4 MB."
            raise self.fleet.calls.model_error(instance.server.containers[0], reply.status, text)
        return reply

    def stream(self, instance: Instance, invocation: Invocation) -> StreamedReply:
        return self.fleet.calls.stream(instance, invocation)


def variant_summary(variant: Variant, status: str = "", message: str = "") -> Document:
    """ProductionVariantSummary of a running variant."""
    summary: Document = {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
    }
    if variant.serverless:
        summary |= {"CurrentServerlessConfig": variant.serverless, "DesiredServerlessConfig": variant.serverless}
    else:
        count = variant.asked if variant.hosts_components else variant.fleet.size
        summary |= {"CurrentInstanceCount": count, "DesiredInstanceCount": variant.asked}
    for member in ("ManagedInstanceScaling", "RoutingConfig"):
        if member in variant.definition:
            summary[member] = variant.definition[member]
    images = variant.fleet.deployed_images()
    if images:
        summary["DeployedImages"] = images
    if status:
        summary["VariantStatus"] = [{"Status": status, "StatusMessage": message, "StartTime": time.time()}]
    return summary

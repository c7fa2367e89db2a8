"""What runs for one configuration of an endpoint: its variants, the shadows that get copies, and its data capture."""

import logging
import random
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from launcher.local.calls import Instance
from launcher.local.data_capture import DataCapture
from launcher.local.endpoint_metrics import EndpointMetrics, Source
from launcher.local.errors import RuntimeValidationError, ServiceError, ServiceUnavailable
from launcher.local.platform import Platform, together
from launcher.local.served_container import Reply
from launcher.local.serving import Invocation
from launcher.local.store import Document
from launcher.local.variant import Variant, variant_summary

logger = logging.getLogger(__name__)
SHADOW_THREADS = 4


class Deployment:
    """The running side of one endpoint configuration."""

    def __init__(
        self,
        platform: Platform,
        metrics: EndpointMetrics,
        endpoint_name: str,
        config: Document,
        ended: threading.Event,
    ) -> None:
        self.config = config

        def variant(definition: Document) -> Variant:
            source = Source(endpoint_name, definition["VariantName"], config.get("EndpointConfigName", ""))
            return Variant(platform, metrics, source, definition, ended)

        self.variants = [variant(item) for item in config.get("ProductionVariants", [])]
        self.shadows = [variant(item) for item in config.get("ShadowProductionVariants", [])]
        self._shadow_calls = ThreadPoolExecutor(SHADOW_THREADS, thread_name_prefix="shadow")
        capture = config.get("DataCaptureConfig", {})
        captures = capture.get("EnableCapture", bool(capture))
        self._capture: DataCapture | None = None
        if captures:
            self._capture = DataCapture(platform.buckets, endpoint_name, capture)

    def all(self) -> Iterator[Variant]:
        yield from self.variants
        yield from self.shadows

    @property
    def instances(self) -> int:
        """Instances of all production variants that take requests."""
        return sum(variant.fleet.size for variant in self.variants)

    @property
    def asked(self) -> int:
        """Instances of all production variants that are asked for."""
        return sum(variant.asked for variant in self.variants)

    def retain(self, summaries: Sequence[Mapping[str, Any]], properties: Collection[str]) -> None:
        """Take over counts and weights of variants of the same names.

        Args:
            summaries: ProductionVariants of the endpoint's description.
            properties: which of DesiredInstanceCount and DesiredWeight.
        """
        known = {item["VariantName"]: item for item in summaries}
        for variant in self.variants:
            before = known.get(variant.name, {})
            if "DesiredWeight" in properties and "DesiredWeight" in before:
                variant.weight = float(before["DesiredWeight"])
            if "DesiredInstanceCount" in properties and "DesiredInstanceCount" in before and not variant.serverless:
                variant.asked = int(before["DesiredInstanceCount"])

    # --- capacity ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start every variant.

        Raises:
            JobFailed: one of them did not start.
        """
        together(list(self.all()), Variant.start)

    def resize(self, share: float) -> None:
        """Run a share of the instances that are asked for, as a rolling update does; errors as `start`."""
        together(list(self.all()), lambda variant: variant.resize(share))

    def watch(self) -> None:
        for variant in self.all():
            variant.fleet.watch()

    def stop(self, drain: bool = False) -> None:
        """End the containers; what is still under way ends first where `drain` says so, or has their grace."""
        together(list(self.all()), lambda variant: variant.fleet.stop(drain))
        self._shadow_calls.shutdown(wait=True)
        if self._capture is not None:
            self._capture.stop()

    # --- requests ---------------------------------------------------------------------------------------------------

    def take(self, invocation: Invocation, target_variant: str | None) -> tuple[Variant, Instance]:
        """The variant and instance that answer: the target's, the session's, or by weight.

        Raises:
            ServiceError: see `Variant.acquire`; RuntimeValidationError also where there is no such variant.
        """
        variant = self._choose(invocation, target_variant)
        return variant, variant.acquire(invocation)

    def _choose(self, invocation: Invocation, target_variant: str | None) -> Variant:
        if target_variant is not None:
            found = self.find(target_variant)
            if found is None:
                raise RuntimeValidationError(f"Variant {target_variant} not found in this endpoint.")
            return found
        for variant in self.variants:
            if variant.fleet.has_session(invocation.session_id):
                return variant
        ready = [variant for variant in self.variants if variant.fleet.size or variant.hosts_components]
        if not ready:
            raise ServiceUnavailable("The instance of the endpoint is being replaced; try again.")
        weights = [variant.weight for variant in ready]
        return random.choices(ready, weights)[0] if any(weights) else ready[0]

    def find(self, variant_name: str) -> Variant | None:
        return next((variant for variant in self.variants if variant.name == variant_name), None)

    def has_session(self, session_id: str) -> bool:
        return any(variant.fleet.has_session(session_id) for variant in self.variants)

    def copy_to_shadows(self, invocation: Invocation, weight: float) -> None:
        """Send copies of a request that goes to a variant of this weight."""
        for shadow in self.shadows:
            if random.random() * weight < shadow.weight:
                self._shadow_calls.submit(self._invoke_shadow, shadow, invocation)

    def _invoke_shadow(self, shadow: Variant, invocation: Invocation) -> None:
        try:
            instance = shadow.acquire(invocation)
            try:
                shadow.invoke(instance, invocation)  # nobody sees the answer
            finally:
                shadow.release(instance)
        except ServiceError as error:
            logger.warning("shadow variant %s: %s", shadow.name, error)

    def capture(self, variant_name: str, invocation: Invocation, reply: Reply) -> None:
        """Keep what the sampling picks."""
        if self._capture is not None:
            self._capture.add(variant_name, invocation, reply)


def deployed_members(deployment: Deployment) -> Document:
    """The members of an endpoint's document that a successful deployment sets; None removes one."""
    config = deployment.config
    capture = config.get("DataCaptureConfig")
    return {
        "EndpointStatus": "InService",
        "EndpointConfigName": config["EndpointConfigName"],
        "ProductionVariants": [variant_summary(variant) for variant in deployment.variants],
        "ShadowProductionVariants": [variant_summary(variant) for variant in deployment.shadows] or None,
        "AsyncInferenceConfig": config.get("AsyncInferenceConfig"),
        "DataCaptureConfig": capture_summary(capture) if capture else None,
        "PendingDeploymentSummary": None,
        "FailureReason": None,
    }


def capture_summary(config: Mapping[str, Any]) -> Document:
    """DataCaptureConfigSummary, every member of which the service's model requires."""
    is_on = config.get("EnableCapture", True)
    return {
        "EnableCapture": is_on,
        "CaptureStatus": "Started" if is_on else "Stopped",
        "CurrentSamplingPercentage": config["InitialSamplingPercentage"],
        "DestinationS3Uri": config["DestinationS3Uri"],
        "KmsKeyId": config.get("KmsKeyId", ""),
    }

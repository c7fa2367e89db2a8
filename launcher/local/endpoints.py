"""Endpoints: deployed, updated, called, and brought back by the next server."""

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from container import contract
from launcher.local.async_inference import AsyncQueue
from launcher.local.data_capture import DataCapture
from launcher.local.errors import JobFailed, RuntimeValidationError, ServiceError, ServiceUnavailable
from launcher.local.platform import Platform
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import Invocation
from launcher.local.store import ENDPOINT, ENDPOINT_CONFIG, Document
from launcher.local.variant import Variant, start_variants, variant_summary

logger = logging.getLogger(__name__)
WATCH_SECONDS = 2.0
SHADOW_THREADS = 4
LATECOMER_SECONDS = 0.2  # for requests that chose the old variants just before the switch
DRAIN_POLL_SECONDS = 0.05


class Deployment:
    """What runs for one configuration of an endpoint: its variants and its capture."""

    def __init__(self, platform: Platform, endpoint_name: str, config: Document) -> None:
        self.config = config
        self.variants = [Variant(platform, endpoint_name, item) for item in config.get("ProductionVariants", [])]
        self.shadows = [Variant(platform, endpoint_name, item) for item in config.get("ShadowProductionVariants", [])]
        self._shadow_calls = ThreadPoolExecutor(SHADOW_THREADS, thread_name_prefix="shadow")
        capture = config.get("DataCaptureConfig", {})
        captures = capture.get("EnableCapture", bool(capture))
        self._capture = DataCapture(platform.buckets, endpoint_name, capture) if captures else None

    def all(self) -> Iterator[Variant]:
        yield from self.variants
        yield from self.shadows

    def choose(self, target_variant: str | None) -> Variant:
        """The variant that takes a request: the target, or one at random by weight.

        Raises:
            RuntimeValidationError: no such variant.
            ServiceUnavailable: every instance is being replaced.
        """
        if target_variant is not None:
            found = next((variant for variant in self.variants if variant.name == target_variant), None)
            if found is None:
                raise RuntimeValidationError(f"Variant {target_variant} not found in this endpoint.")
            return found
        ready = [variant for variant in self.variants if variant.server is not None]
        if not ready:
            raise ServiceUnavailable("The instance of the endpoint is being replaced; try again.")
        weights = [variant.weight for variant in ready]
        return random.choices(ready, weights)[0] if any(weights) else ready[0]

    def invoke(self, invocation: Invocation, target_variant: str | None) -> tuple[Reply, Variant]:
        """Answer from one variant; copies go to the shadows, what the sampling picks is captured.

        Raises:
            ServiceError: see `Variant.invoke`.
        """
        variant = self.choose(target_variant)
        for shadow in self.shadows:
            if random.random() * variant.weight < shadow.weight:
                self._shadow_calls.submit(self._invoke_shadow, shadow, invocation)
        reply = variant.invoke(invocation)
        if self._capture is not None:
            self._capture.add(variant.name, invocation, reply)
        return reply, variant

    def _invoke_shadow(self, shadow: Variant, invocation: Invocation) -> None:
        try:
            shadow.invoke(invocation)  # nobody sees the answer
        except ServiceError as error:
            logger.warning("shadow variant %s: %s", shadow.name, error)

    def drain(self) -> None:
        """Let the requests that are under way end; none comes any more."""
        time.sleep(LATECOMER_SECONDS)
        deadline = time.monotonic() + contract.INVOCATION_TIMEOUT_SECONDS
        while any(variant.in_flight for variant in self.variants) and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL_SECONDS)

    def stop(self) -> None:
        """End the containers; what is still under way has their grace, and breaks then."""
        variants = list(self.all())
        with ThreadPoolExecutor(max(1, len(variants))) as executor:
            list(executor.map(Variant.stop, variants))
        self._shadow_calls.shutdown(wait=True)
        if self._capture is not None:
            self._capture.stop()


class Endpoint:
    """The running side of one endpoint; its document in the store is what clients see."""

    def __init__(self, platform: Platform, name: str) -> None:
        self._platform = platform
        self.name = name
        self.queue: AsyncQueue | None = None  # of an asynchronous endpoint; it outlives an update
        self._current: Deployment | None = None
        self._deleted = threading.Event()
        self._deploying = threading.Thread()
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    def deploy(self, config_name: str) -> None:
        """Start a configuration's variants in the background, and switch to them once all are healthy."""
        self._deploying = threading.Thread(target=self._deploy, args=(config_name,), daemon=True)
        self._deploying.start()

    def _deploy(self, config_name: str) -> None:
        config = self._platform.store.find(ENDPOINT_CONFIG, config_name) or {}
        fresh = Deployment(self._platform, self.name, config)
        try:
            start_variants(list(fresh.all()), self._deleted.is_set)
        except JobFailed as error:
            fresh.stop()
            # a first deployment fails the endpoint; a later one leaves what is in service there
            self._update(EndpointStatus="InService" if self._current else "Failed", FailureReason=str(error))
            return
        old, self._current = self._current, fresh
        if self.queue is None and "AsyncInferenceConfig" in config:
            self.queue = AsyncQueue(self._platform.buckets, config["AsyncInferenceConfig"], self._invoke_queued)
        self._update(**deployed_members(fresh))
        if old is not None:
            old.drain()
            old.stop()

    def _update(self, **members: Any) -> None:
        if self._deleted.is_set():
            return
        present = self._platform.store.find(ENDPOINT, self.name) or {}
        kept = {name: value for name, value in members.items() if value is not None or name in present}
        self._platform.store.update(ENDPOINT, self.name, **kept)

    def invoke(self, invocation: Invocation, target_variant: str | None) -> tuple[Reply, Variant]:
        """Answer a request.

        Raises:
            ServiceError: see `Variant.invoke`; RuntimeValidationError also on an asynchronous endpoint.
        """
        return self._synchronous().invoke(invocation, target_variant)

    def stream(self, invocation: Invocation, target_variant: str | None) -> tuple[StreamedReply, Variant]:
        """Answer a request bit by bit; errors as `invoke`."""
        variant = self._synchronous().choose(target_variant)
        return variant.stream(invocation), variant

    def _invoke_queued(self, invocation: Invocation) -> Reply:
        return self.deployment().invoke(invocation, None)[0]

    def _synchronous(self) -> Deployment:
        deployment = self.deployment()
        if self.queue is not None:
            raise RuntimeValidationError(f"Endpoint {self.name} is asynchronous: use InvokeEndpointAsync.")
        return deployment

    def deployment(self) -> Deployment:
        """What is in service.

        Raises:
            RuntimeValidationError: nothing yet, or no more.
        """
        if self._current is None:
            raise RuntimeValidationError(f"Endpoint {self.name} is not in service.")
        return self._current

    def set_weights(self, desired: Sequence[Mapping[str, Any]]) -> None:
        """Move traffic between the variants."""
        variants = self.deployment().variants
        for item in desired:
            for variant in variants:
                if variant.name == item["VariantName"] and "DesiredWeight" in item:
                    variant.weight = float(item["DesiredWeight"])
        self._update(ProductionVariants=[variant_summary(variant) for variant in variants])

    def _watch(self) -> None:
        while not self._deleted.wait(WATCH_SECONDS):
            for variant in self._current.all() if self._current else ():
                variant.watch(self._deleted.is_set)

    def stop(self) -> None:
        """End every variant; a deployment under way is cancelled."""
        self._deleted.set()
        if self._deploying.ident is not None:
            self._deploying.join()
        if self.queue is not None:
            self.queue.end()
        current, self._current = self._current, None
        if current is not None:
            current.stop()
        if self.queue is not None:
            self.queue.join()


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


class Endpoints:
    """Every running endpoint by name."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the endpoints that an earlier server had in service."""
        for document in self._platform.store.all(ENDPOINT):
            if document["EndpointStatus"] != "Failed":
                self._platform.store.update(ENDPOINT, document["EndpointName"], EndpointStatus="Creating")
                self.deploy(document["EndpointName"], document["EndpointConfigName"])

    def deploy(self, name: str, config_name: str) -> None:
        with self._lock:
            endpoint = self._endpoints.setdefault(name, Endpoint(self._platform, name))
        endpoint.deploy(config_name)

    def find(self, name: str) -> Endpoint | None:
        with self._lock:
            return self._endpoints.get(name)

    def delete(self, name: str) -> None:
        """End an endpoint in the background, then forget it."""
        threading.Thread(target=self._delete, args=(name,), name=f"delete {name}", daemon=True).start()

    def _delete(self, name: str) -> None:
        with self._lock:
            endpoint = self._endpoints.pop(name, None)
        if endpoint is not None:
            endpoint.stop()
        self._platform.store.delete(ENDPOINT, name)

    def shut_down(self) -> None:
        """End every container; the endpoints stay in the store and start again with the next server."""
        with self._lock:
            endpoints = list(self._endpoints.values())
        with ThreadPoolExecutor(max(1, len(endpoints))) as executor:
            list(executor.map(Endpoint.stop, endpoints))

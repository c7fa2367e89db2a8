"""Endpoints: variants started, watched, replaced, updated and called."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from container import contract
from launcher.local.containers import ContainerStartError
from launcher.local.errors import JobFailed, ServiceError, ValidationException
from launcher.local.logs import ENDPOINT_GROUP
from launcher.local.platform import Platform
from launcher.local.serving import ModelServer, ServingPlan
from launcher.local.store import ENDPOINT, ENDPOINT_CONFIG, MODEL, Document

logger = logging.getLogger(__name__)
WATCH_SECONDS = 2.0
FAILED_PINGS = 3  # in a row until an instance is replaced; the service's number is not documented
REPLACE_SECONDS = 5.0  # between two tries to replace an instance


class ServiceUnavailable(ServiceError):
    """No instance can take the request now."""

    status = 503
    code = "ServiceUnavailable"


class Variant:
    """One production variant: its model on one instance, whatever its InitialInstanceCount."""

    def __init__(self, platform: Platform, endpoint_name: str, definition: Document) -> None:
        self.name: str = definition["VariantName"]
        self.definition = definition
        self.weight = float(definition.get("InitialVariantWeight", 1.0))
        self._platform = platform
        self._endpoint_name = endpoint_name
        self.server: ModelServer | None = None
        self._lock = threading.Lock()  # replacing an instance and stopping the variant exclude each other
        self._failed_pings = 0
        self._next_try = 0.0

    @property
    def startup_seconds(self) -> float:
        return float(
            self.definition.get("ContainerStartupHealthCheckTimeoutInSeconds", contract.STARTUP_TIMEOUT_SECONDS)
        )

    def start(self, is_cancelled: Callable[[], bool]) -> None:
        """Start the model and wait for its pings.

        Raises:
            JobFailed: with the service's sentence and the container's own last error line.
        """
        model = self._platform.store.find(MODEL, self.definition["ModelName"])
        if model is None:
            raise JobFailed(f'Could not find model "{self.definition["ModelName"]}".')
        instance = f"i-{uuid4().hex[:17]}"
        plan = ServingPlan(
            name=f"{self._endpoint_name}-{self.name}-{instance}",
            environment={},
            stream_name=lambda hostname: self._stream_name(model, instance, hostname),
        )
        server = ModelServer(self._platform, model, plan)
        try:
            server.start()
            server.wait_until_ready(self.startup_seconds, is_cancelled)
        except (JobFailed, ContainerStartError) as error:
            server.stop(0)
            raise JobFailed(self._start_failure(server, error)) from error
        self.server = server

    def _stream_name(self, model: Document, instance: str, hostname: str) -> tuple[str, str]:
        suffix = f"/{hostname}" if "Containers" in model else ""
        return f"{ENDPOINT_GROUP}/{self._endpoint_name}", f"{self.name}/{instance}{suffix}"

    def _start_failure(self, server: ModelServer, error: Exception) -> str:
        if isinstance(error, ContainerStartError):
            return f"Failed to start the container of production variant {self.name}: {error}"
        if len(server.containers) < len(server.definitions):
            return str(error)  # the model's data
        return (
            f"The primary container for production variant {self.name} did not pass the ping health check. "
            f"Please check CloudWatch logs for this endpoint. The container: {error}"
        )

    def watch(self, is_cancelled: Callable[[], bool]) -> None:
        """Replace the instance when it has died, or pinged badly several times."""
        with self._lock:
            if not is_cancelled():
                self._watch(is_cancelled)

    def _watch(self, is_cancelled: Callable[[], bool]) -> None:
        if self.server is not None:
            self._failed_pings = 0 if self.server.is_healthy() else self._failed_pings + 1
            if self.server.is_alive and self._failed_pings < FAILED_PINGS:
                return
            logger.warning("endpoint %s: replacing the instance of variant %s", self._endpoint_name, self.name)
            broken, self.server = self.server, None
            broken.stop()
        if time.time() < self._next_try:
            return
        try:
            self.start(is_cancelled)
            self._failed_pings = 0
        except JobFailed as error:
            self._next_try = time.time() + REPLACE_SECONDS
            logger.warning("endpoint %s: variant %s did not start: %s", self._endpoint_name, self.name, error)

    def stop(self) -> None:
        with self._lock:
            if self.server is not None:
                self.server.stop()
                self.server = None


class Endpoint:
    """The running side of one endpoint; its document in the store is what clients see."""

    def __init__(self, platform: Platform, name: str) -> None:
        self._platform = platform
        self.name = name
        self.variants: list[Variant] = []
        self._lock = threading.Lock()
        self._deleted = threading.Event()
        self._deployment = threading.Thread()
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    def deploy(self, config_name: str) -> None:
        """Start the variants of a configuration in the background, and switch to them once all are healthy."""
        self._deployment = threading.Thread(
            target=self._deploy, args=(config_name,), name=f"deploy {self.name}", daemon=True
        )
        self._deployment.start()

    def _deploy(self, config_name: str) -> None:
        config = self._platform.store.find(ENDPOINT_CONFIG, config_name) or {}
        fresh = [Variant(self._platform, self.name, definition) for definition in config.get("ProductionVariants", [])]
        try:
            start_variants(fresh, self._deleted.is_set)
        except JobFailed as error:
            for variant in fresh:
                variant.stop()
            self._deployment_failed(str(error))
            return
        with self._lock:
            old, self.variants = self.variants, fresh
        self._update(
            EndpointStatus="InService",
            EndpointConfigName=config_name,
            ProductionVariants=[variant_summary(variant) for variant in fresh],
            FailureReason=None,
        )
        for variant in old:
            variant.stop()

    def _deployment_failed(self, reason: str) -> None:
        """A first deployment fails the endpoint; a later one leaves the old variants in service."""
        if self.variants:
            self._update(EndpointStatus="InService", FailureReason=reason)
        else:
            self._update(EndpointStatus="Failed", FailureReason=reason)

    def _update(self, **members: Any) -> None:
        if self._deleted.is_set():
            return
        present = self._platform.store.find(ENDPOINT, self.name) or {}
        kept = {name: value for name, value in members.items() if value is not None or name in present}
        self._platform.store.update(ENDPOINT, self.name, **kept)

    def choose(self, target_variant: str | None) -> Variant:
        """The variant that takes a request: the target, or one at random by weight.

        Raises:
            ValidationException: no such variant.
            ServiceUnavailable: every instance is being replaced.
        """
        with self._lock:
            variants = list(self.variants)
        if target_variant is not None:
            found = [variant for variant in variants if variant.name == target_variant]
            if not found:
                raise RuntimeValidationError(f"Variant {target_variant} not found in endpoint {self.name}.")
            variants = found
        ready = [variant for variant in variants if variant.server is not None]
        weights = [variant.weight for variant in ready]
        if not ready:
            raise ServiceUnavailable("The instance of the endpoint is being replaced; try again.")
        return ready[0] if len(ready) == 1 or not any(weights) else random.choices(ready, weights)[0]

    def _watch(self) -> None:
        while not self._deleted.wait(WATCH_SECONDS):
            with self._lock:
                variants = list(self.variants)
            for variant in variants:
                variant.watch(self._deleted.is_set)

    def stop(self) -> None:
        """End every variant; a deployment under way is cancelled."""
        self._deleted.set()
        if self._deployment.ident is not None:
            self._deployment.join()
        with self._lock:
            variants, self.variants = self.variants, []
        for variant in variants:
            variant.stop()


class RuntimeValidationError(ValidationException):
    """`ValidationError` of the runtime API."""

    code = "ValidationError"


def start_variants(variants: Sequence[Variant], is_cancelled: Callable[[], bool]) -> None:
    """Start variants together.

    Raises:
        JobFailed: one of them did not start; the first one's reason.
    """
    with ThreadPoolExecutor(max(1, len(variants))) as executor:
        futures = [executor.submit(variant.start, is_cancelled) for variant in variants]
    for future in futures:
        future.result()


def variant_summary(variant: Variant) -> Document:
    """ProductionVariantSummary of a running variant."""
    definition = variant.definition
    count = definition.get("InitialInstanceCount", 1)
    summary: Document = {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
        "CurrentInstanceCount": count,
        "DesiredInstanceCount": count,
    }
    if variant.server is not None:
        summary["DeployedImages"] = [
            {"SpecifiedImage": item["Image"], "ResolvedImage": item["Image"], "ResolutionTime": time.time()}
            for item in variant.server.definitions
        ]
    return summary


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

    def set_weights(self, name: str, desired: Sequence[Mapping[str, Any]]) -> None:
        """Move traffic between the variants of an endpoint."""
        endpoint = self.find(name)
        variants = endpoint.variants if endpoint else []
        for item in desired:
            for variant in variants:
                if variant.name == item["VariantName"] and "DesiredWeight" in item:
                    variant.weight = float(item["DesiredWeight"])
        summaries = [variant_summary(variant) for variant in variants]
        self._platform.store.update(ENDPOINT, name, ProductionVariants=summaries)

    def shut_down(self) -> None:
        """End every container; the endpoints stay in the store and start again with the next server."""
        with self._lock:
            endpoints = list(self._endpoints.values())
        with ThreadPoolExecutor(max(1, len(endpoints))) as executor:
            list(executor.map(Endpoint.stop, endpoints))

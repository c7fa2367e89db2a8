"""One production or shadow variant of an endpoint: started, watched, replaced and called."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from container import contract
from launcher.local.buckets import ACCOUNT
from launcher.local.containers import ContainerStartError
from launcher.local.errors import JobFailed, ModelError, RuntimeValidationError, ServiceUnavailable, Throttled
from launcher.local.logs import ENDPOINT_GROUP
from launcher.local.platform import Platform
from launcher.local.served_container import InvocationBroken, InvocationTimeout, Reply, ServedContainer, StreamedReply
from launcher.local.serving import Invocation, ModelServer, ServingPlan
from launcher.local.store import MODEL, Document

logger = logging.getLogger(__name__)
FAILED_PINGS = 3  # in a row until an instance is replaced; the service's number is not documented
REPLACE_SECONDS = 5.0  # between two tries to replace an instance
ORIGINAL_MESSAGE_CHARACTERS = 2048  # ModelError.OriginalMessage
MAX_INVOCATIONS = 10_000  # at once on an instance: the HTTP server's threads are the limit
SERVERLESS_STARTUP_SECONDS = 180  # "model download plus first healthy ping within 3 minutes"
SERVERLESS_PAYLOAD_BYTES = 4 * 2**20  # request and response


class Variant:
    """One production variant: its model on one instance, whatever its InitialInstanceCount."""

    def __init__(self, platform: Platform, endpoint_name: str, definition: Document) -> None:
        self.name: str = definition["VariantName"]
        self.definition = definition
        self.weight = float(definition.get("InitialVariantWeight", 1.0))
        self.serverless: Document = definition.get("ServerlessConfig", {})
        self._free_slots = threading.Semaphore(self.serverless.get("MaxConcurrency", MAX_INVOCATIONS))
        self._platform = platform
        self._endpoint_name = endpoint_name
        self.server: ModelServer | None = None
        self._lock = threading.Lock()  # replacing an instance and stopping the variant exclude each other
        self._failed_pings = 0
        self._next_try = 0.0
        self._calls = threading.Lock()
        self.in_flight = 0

    @property
    def startup_seconds(self) -> float:
        default = SERVERLESS_STARTUP_SECONDS if self.serverless else contract.STARTUP_TIMEOUT_SECONDS
        return float(self.definition.get("ContainerStartupHealthCheckTimeoutInSeconds", default))

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
            memory_mb=self.serverless.get("MemorySizeInMB", 0),
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

    def invoke(self, invocation: Invocation) -> Reply:
        """The model's answer.

        Raises:
            ModelError: the container answered with an error, or not in time.
            Throttled: a serverless variant has no free slot.
            RuntimeValidationError: the invocation does not fit the model, or its body is too large.
            ServiceUnavailable: the instance is being replaced.
        """
        with self._call(invocation) as server:
            reply, served = server.invoke(invocation)
        if reply.status >= 400:
            raise self._model_error(served, reply.status, reply.body.decode("utf-8", "replace"))
        if self.serverless and len(reply.body) > SERVERLESS_PAYLOAD_BYTES:
            raise self._model_error(served, reply.status, f"The answer of {len(reply.body)} bytes is over 4 MB.")
        return reply

    def stream(self, invocation: Invocation) -> StreamedReply:
        """The model's answer as it comes; errors as `invoke`."""
        with self._call(invocation) as server:
            reply, served = server.stream(invocation)
        if reply.status >= 400:
            raise self._model_error(served, reply.status, b"".join(reply.parts).decode("utf-8", "replace"))
        return reply

    @contextlib.contextmanager
    def _call(self, invocation: Invocation) -> Iterator[ModelServer]:
        """The server for one call, its failures as the service's errors."""
        server = self.server
        if server is None:
            raise ServiceUnavailable("The instance of the endpoint is being replaced; try again.")
        if self.serverless and len(invocation.body) > SERVERLESS_PAYLOAD_BYTES:
            raise RuntimeValidationError("Body exceeds 4 MB, the limit of a serverless endpoint.")
        if not self._free_slots.acquire(blocking=False):
            raise Throttled(f"Rate exceeded: variant {self.name} takes {self.serverless['MaxConcurrency']} at a time.")
        served = server.containers[0]
        self._count(1)
        try:
            yield server
        except InvocationTimeout as error:
            text = f"Your invocation timed out while waiting for a response from container {served.hostname}: {error}"
            raise self._model_error(served, 0, text) from error
        except InvocationBroken as error:
            raise self._model_error(served, 500, f"The container broke the connection: {error}") from error
        finally:
            self._count(-1)
            self._free_slots.release()

    def _count(self, change: int) -> None:
        with self._calls:
            self.in_flight += change

    def _model_error(self, served: ServedContainer, status: int, text: str) -> ModelError:
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

    def stop(self) -> None:
        with self._lock:
            if self.server is not None:
                self.server.stop()
                self.server = None


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
    summary: Document = {
        "VariantName": variant.name,
        "CurrentWeight": variant.weight,
        "DesiredWeight": variant.weight,
    }
    if variant.serverless:
        summary |= {"CurrentServerlessConfig": variant.serverless, "DesiredServerlessConfig": variant.serverless}
    else:
        count = definition.get("InitialInstanceCount", 1)
        summary |= {"CurrentInstanceCount": count, "DesiredInstanceCount": count}
    if variant.server is not None:
        summary["DeployedImages"] = [
            {"SpecifiedImage": item["Image"], "ResolvedImage": item["Image"], "ResolutionTime": time.time()}
            for item in variant.server.definitions
        ]
    return summary

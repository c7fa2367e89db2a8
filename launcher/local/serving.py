"""The containers of one model, started, watched and called: what endpoints and transform jobs stand on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from container import contract
from container.contract import OptMl
from launcher.local import artifacts
from launcher.local.buckets import BucketError, Buckets, parse_s3_uri
from launcher.local.containers import SERVE, ContainerSpec, free_port
from launcher.local.errors import JobFailed, RuntimeValidationError
from launcher.local.inputs import download, source_objects
from launcher.local.multi_model import MultiModels
from launcher.local.platform import Platform, stop_all
from launcher.local.served_container import Reply, ServedContainer, StreamedReply
from launcher.local.store import Document

PING_INTERVAL_SECONDS = 0.1  # while starting; the service's own interval is not documented
CONSISTENT_PINGS = 2


@dataclass(frozen=True)
class Invocation:
    """One request for a model."""

    body: bytes
    headers: Mapping[str, str]  # as the container shall see them
    timeout_seconds: float
    target_model: str = ""  # multi-model: the archive's key below the model's prefix
    target_container: str = ""  # direct multi-container: its ContainerHostname
    session_id: str = ""  # stateful sessions: which one; its requests go to one instance
    component: str = ""  # the inference component that is asked
    received: float = field(default_factory=time.perf_counter)  # since when the service has it


@dataclass(frozen=True)
class ServingPlan:
    """Where and how to start a model's containers."""

    name: str  # unique: names containers, the network, and the directory below jobs/
    environment: Mapping[str, str]  # over the model's own
    stream_name: Callable[[str], tuple[str, str]]  # container host name -> log group and stream
    memory_mb: int = 0  # of a serverless variant; 0: no limit


class ModelServer:
    """Every container of one model on one instance."""

    def __init__(self, platform: Platform, model: Document, plan: ServingPlan) -> None:
        self._platform = platform
        self._model = model
        self._plan = plan
        self._directory = platform.jobs_directory / "serving" / plan.name
        self.definitions = container_definitions(model)
        self._network = f"slipway-{plan.name}" if len(self.definitions) > 1 else ""
        self.containers: list[ServedContainer] = []
        self._multi_models: dict[str, MultiModels] = {}

    def start(self) -> None:
        """Lay out the model's files and start its containers.

        Raises:
            JobFailed: the model's data are not there or not usable.
            ContainerStartError: a container cannot be started.
        """
        ports = [free_port() if self._platform.runtime.name == "process" else port for port in self._ports()]
        for index, definition in enumerate(self.definitions):
            hostname = definition.get("ContainerHostname", f"container-{index + 1}")
            tree = OptMl(self._directory / hostname / "ml")
            load_model_data(self._platform.buckets, definition, tree.model)
            stream = self._platform.logs.stream(*self._plan.stream_name(hostname))
            spec = self._spec(definition, tree, hostname, ports[index], ports)
            served = ServedContainer(self._platform.runtime.start(spec, stream.write), hostname, stream)
            self.containers.append(served)
            if definition.get("Mode") == "MultiModel":
                self._multi_models[hostname] = MultiModels(
                    self._platform.buckets, self._platform.runtime, served, definition
                )

    def _ports(self) -> list[int]:
        return [contract.DEFAULT_PORT + index for index in range(len(self.definitions))]

    def _spec(self, definition: Document, tree: OptMl, hostname: str, port: int, ports: Sequence[int]) -> ContainerSpec:
        isolated = self._model.get("EnableNetworkIsolation", False)
        shared = {}
        if len(ports) > 1:
            shared = {contract.BIND_TO_PORT: str(port), contract.SAFE_PORT_RANGE: f"{min(ports)}-{max(ports) + 100}"}
        return ContainerSpec(
            name=f"slipway-{self._plan.name}-{hostname}",
            image=definition["Image"],
            argument=SERVE,
            opt_ml=tree,
            environment=self._platform.credentials(isolated)
            | shared
            | ({contract.MULTI_MODEL: "true"} if definition.get("Mode") == "MultiModel" else {})
            | definition.get("Environment", {})
            | dict(self._plan.environment),
            network=self._network,
            alias=hostname,
            port=port,
            isolated=isolated,
            read_only=(tree.model,),
            memory_mb=self._plan.memory_mb,
        )

    def wait_until_ready(self, timeout_seconds: float, is_cancelled: Callable[[], bool]) -> None:
        """Wait for consistent pings from every container.

        Raises:
            JobFailed: a container ended, or the time is over; the text is its last error line.
        """
        deadline = time.time() + timeout_seconds
        for served in self.containers:
            pings = 0
            while pings < CONSISTENT_PINGS:
                if is_cancelled():
                    raise JobFailed("the start was cancelled")
                if served.container.exit_code is not None:
                    raise JobFailed(f"it exited with code {served.container.exit_code}: {served.last_error_line()}")
                if time.time() > deadline:
                    raise JobFailed(f"it was not ready after {timeout_seconds:g} s: {served.last_error_line()}")
                pings = pings + 1 if served.is_healthy() else 0
                time.sleep(PING_INTERVAL_SECONDS)

    @property
    def is_alive(self) -> bool:
        return bool(self.containers) and all(served.container.exit_code is None for served in self.containers)

    def is_healthy(self) -> bool:
        return self.is_alive and all(served.is_healthy() for served in self.containers)

    def invoke(self, invocation: Invocation) -> tuple[Reply, ServedContainer]:
        """The model's answer, through every container of a serial pipeline; and which container gave it.

        Raises:
            InvocationTimeout, InvocationBroken: see `ServedContainer.request`.
            ServiceError: the invocation does not fit the model.
        """
        deadline = time.time() + invocation.timeout_seconds
        body, headers = invocation.body, dict(invocation.headers)
        route = self.route(invocation)
        for served in route:
            is_last = served is route[-1]
            hop = headers if is_last else {name: value for name, value in headers.items() if name != "Accept"}
            reply = self._request(served, invocation.target_model, body, hop, max(0.001, deadline - time.time()))
            if reply.status >= 400 or is_last:
                return reply, served
            body = reply.body
            headers["Content-Type"] = reply.content_type
        raise AssertionError("a model has at least one container")

    def _request(
        self, served: ServedContainer, target_model: str, body: bytes, headers: Mapping[str, str], timeout: float
    ) -> Reply:
        models = self._multi_models.get(served.hostname)
        if models is None:
            return served.request("POST", contract.INVOCATIONS_PATH, body, headers, timeout)
        return models.invoke(target_model, body, headers, timeout)

    def stream(self, invocation: Invocation) -> tuple[StreamedReply, ServedContainer]:
        """The answer as it comes; of a pipeline or a multi-model container there is none.

        Raises:
            InvocationTimeout, InvocationBroken: see `ServedContainer.stream`.
            ServiceError: the invocation does not fit the model.
        """
        route = self.route(invocation)
        if len(route) > 1 or self._multi_models:
            raise RuntimeValidationError("Response streaming is for single containers and direct invocation only.")
        path = contract.INVOCATIONS_PATH
        return route[0].stream(path, invocation.body, invocation.headers, invocation.timeout_seconds), route[0]

    def route(self, invocation: Invocation) -> list[ServedContainer]:
        """The containers that an invocation goes through.

        Raises:
            RuntimeValidationError: a target is missing, unknown, or given where there is none.
        """
        is_direct = self._model.get("InferenceExecutionConfig", {}).get("Mode") == "Direct"
        if bool(invocation.target_container) != is_direct:
            wanted = "needs" if is_direct else "does not take"
            raise RuntimeValidationError(f"The endpoint {wanted} a TargetContainerHostname header.")
        if bool(invocation.target_model) != bool(self._multi_models):
            wanted = "needs" if self._multi_models else "does not take"
            raise RuntimeValidationError(f"The endpoint {wanted} a TargetModel header.")
        if not is_direct:
            return self.containers
        found = [served for served in self.containers if served.hostname == invocation.target_container]
        if not found:
            names = ", ".join(served.hostname for served in self.containers)
            raise RuntimeValidationError(f"No container {invocation.target_container}; the endpoint has {names}.")
        return found

    def stop(self, grace_seconds: float = contract.SERVING_STOP_SECONDS) -> None:
        """End every container and remove what they left."""
        stop_all([served.container for served in self.containers], grace_seconds)
        for served in self.containers:
            served.log.close()
        if self._network:
            self._platform.runtime.remove_network(self._network)
        self._platform.runtime.reclaim(self._directory, self.definitions[0]["Image"])
        artifacts.remove_tree(self._directory)


def container_definitions(model: Mapping[str, Any]) -> list[Document]:
    """PrimaryContainer or Containers of a CreateModel request."""
    if "PrimaryContainer" in model:
        return [model["PrimaryContainer"]]
    return list(model.get("Containers", []))


def load_model_data(buckets: Buckets, definition: Mapping[str, Any], directory: Path) -> None:
    """Fill `/opt/ml/model` of one container.

    Raises:
        JobFailed: nothing lies at the location, or it is no usable archive.
    """
    directory.mkdir(parents=True, exist_ok=True)
    source = definition.get("ModelDataSource", {}).get("S3DataSource", {})
    uri = source.get("S3Uri") or definition.get("ModelDataUrl")
    if not uri or definition.get("Mode") == "MultiModel":
        return
    try:
        if source.get("CompressionType") == "None":
            objects = source_objects(buckets, source)
            if not objects:
                raise BucketError(f"no objects below {uri}")
            download(buckets, objects, directory)
        else:
            artifacts.unpack(buckets.read(*parse_s3_uri(uri)), directory, uri)
    except BucketError as error:
        raise JobFailed(f"Could not find model data at {uri}. ({error})") from error

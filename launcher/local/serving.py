"""The containers of one model, started, watched and called: what endpoints and transform jobs stand on."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import urllib3.exceptions

from container import contract
from container.contract import OptMl
from launcher.local import artifacts
from launcher.local.buckets import BucketError, Buckets, parse_s3_uri
from launcher.local.containers import SERVE, Container, ContainerSpec, free_port
from launcher.local.errors import JobFailed
from launcher.local.inputs import download, source_objects
from launcher.local.logs import LogStream
from launcher.local.platform import Platform, stop_all
from launcher.local.store import Document

PING_INTERVAL_SECONDS = 0.1  # while starting; the service's own interval is not documented
CONSISTENT_PINGS = 2
POOL_SIZE = 64
ERROR_LINE = re.compile(r"error|exception|failed|cannot|traceback", re.IGNORECASE)


class InvocationTimeout(Exception):
    """The container did not answer within the limit."""


class InvocationBroken(Exception):
    """The container closed the connection, or does not listen."""


@dataclass(frozen=True)
class Reply:
    """What a container answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "application/octet-stream")


class ServedContainer:
    """One container of a model and the connections to it."""

    def __init__(self, container: Container, hostname: str, stream: LogStream) -> None:
        self.container = container
        self.hostname = hostname
        self.stream = stream
        self._pool = urllib3.HTTPConnectionPool(*container.address, maxsize=POOL_SIZE, block=False)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Reply:
        """One request over a kept connection.

        Raises:
            InvocationTimeout: no whole answer within `timeout` seconds.
            InvocationBroken: no connection, or it broke.
        """
        sent = {"User-Agent": "AHC/2.0", "Accept-Encoding": urllib3.util.SKIP_HEADER, **(headers or {})}
        try:
            answer = self._pool.urlopen(
                method,
                path,
                body=body,
                headers=sent,
                retries=False,
                redirect=False,
                timeout=timeout,
                decode_content=False,
            )
        except urllib3.exceptions.NewConnectionError as error:
            raise InvocationBroken(f"nothing listens on port {self.container.address[1]}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise InvocationTimeout(f"no answer within {timeout:.3g} s") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise InvocationBroken(f"the connection broke: {error}") from error
        return Reply(answer.status, answer.headers, answer.data)

    def is_healthy(self) -> bool:
        """One ping: 200 within its two seconds."""
        try:
            return self.request("GET", contract.HEALTH_PATH, timeout=contract.PING_TIMEOUT_SECONDS).status == 200
        except (InvocationTimeout, InvocationBroken):
            return False

    def last_error_line(self) -> str:
        """The line of its log that most likely says why it does not serve."""
        lines = list(self.container.last_lines)
        return next((line for line in reversed(lines) if ERROR_LINE.search(line)), lines[-1] if lines else "")


@dataclass(frozen=True)
class ServingPlan:
    """Where and how to start a model's containers."""

    name: str  # unique: names containers, the network, and the directory below jobs/
    environment: Mapping[str, str]  # over the model's own
    stream_name: Callable[[str], tuple[str, str]]  # container host name -> log group and stream


class ModelServer:
    """Every container of one model on one instance."""

    def __init__(self, platform: Platform, model: Document, plan: ServingPlan) -> None:
        self._platform = platform
        self._model = model
        self._plan = plan
        self._directory = platform.jobs_directory / "serving" / plan.name
        self._network = f"slipway-{plan.name}"
        self.definitions = container_definitions(model)
        self.containers: list[ServedContainer] = []

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
            self.containers.append(ServedContainer(self._platform.runtime.start(spec, stream.write), hostname, stream))

    def _ports(self) -> list[int]:
        return [contract.DEFAULT_PORT + index for index in range(len(self.definitions))]

    def _spec(self, definition: Document, tree: OptMl, hostname: str, port: int, ports: Sequence[int]) -> ContainerSpec:
        isolated = self._model.get("EnableNetworkIsolation", False)
        shared = {}
        if len(ports) > 1:
            shared = {contract.BIND_TO_PORT: str(port), contract.SAFE_PORT_RANGE: f"{min(ports)}-{max(ports) + 100}"}
        return ContainerSpec(
            name=f"{self._network}-{hostname}",
            image=definition["Image"],
            argument=SERVE,
            opt_ml=tree,
            environment=self._platform.credentials(isolated)
            | shared
            | definition.get("Environment", {})
            | dict(self._plan.environment),
            network=self._network,
            alias=hostname,
            port=port,
            isolated=isolated,
            read_only=(tree.model,),
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

    def invoke(self, body: bytes, headers: Mapping[str, str], timeout: float) -> tuple[Reply, ServedContainer]:
        """`POST /invocations`, through every container of a serial pipeline; the reply and who gave it.

        Raises:
            InvocationTimeout, InvocationBroken: see `ServedContainer.request`.
        """
        deadline = time.time() + timeout
        sent = dict(headers)
        for served in self.containers:
            is_last = served is self.containers[-1]
            hop = sent if is_last else {name: value for name, value in sent.items() if name != "Accept"}
            left = max(0.001, deadline - time.time())
            reply = served.request("POST", contract.INVOCATIONS_PATH, body, hop, left)
            if reply.status >= 400 or is_last:
                return reply, served
            body = reply.body
            sent["Content-Type"] = reply.content_type
        raise AssertionError("a model has at least one container")

    def stop(self, grace_seconds: float = contract.SERVING_STOP_SECONDS) -> None:
        """End every container and remove what they left."""
        stop_all([served.container for served in self.containers], grace_seconds)
        for served in self.containers:
            served.stream.close()
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

"""`/_local/...`: what has no counterpart in AWS, as JSON: for `client.py`, tests and the web page."""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from container import contract
from launcher.local.client import LocalServer
from launcher.local.endpoints import Endpoints
from launcher.local.errors import ResourceNotFound, ServiceError, ValidationException
from launcher.local.faults import Faults
from launcher.local.logs import ENDPOINT_GROUP, PROCESSING_GROUP, TRAINING_GROUP, TRANSFORM_GROUP
from launcher.local.metrics import metric_points
from launcher.local.platform import JobQueue, Platform
from launcher.local.serving import Invocation
from launcher.local.store import ENDPOINT, JOBS, PROCESSING_JOB, TRAINING_JOB, TRANSFORM_JOB, Document

LOG_LINES = 500
GROUPS = {
    TRAINING_JOB.arn_type: TRAINING_GROUP,
    TRANSFORM_JOB.arn_type: TRANSFORM_GROUP,
    PROCESSING_JOB.arn_type: PROCESSING_GROUP,
}


class Forbidden(ServiceError):
    """A web page of somebody else asks."""

    status = 403
    code = "Forbidden"


class Admin:
    """The routes below `/_local/`."""

    def __init__(
        self, local: LocalServer, platform: Platform, queue: JobQueue, endpoints: Endpoints, faults: Faults
    ) -> None:
        self._local = local
        self._platform = platform
        self._queue = queue
        self._endpoints = endpoints
        self.faults = faults
        self._routes: dict[tuple[str, str], Callable[[list[str], Mapping[str, str], bytes], Any]] = {
            ("GET", "health"): self._health,
            ("GET", "overview"): self._overview,
            ("GET", "logs"): self._logs,
            ("GET", "metrics"): self._metrics,
            ("POST", "interrupt"): self._interrupt,
            ("POST", "invoke"): self._invoke,
            ("POST", "faults"): self._add_fault,
        }

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        """One request; `path` is what stands after `/_local/`.

        Raises:
            ServiceError: no such route or resource, or a foreign page asks.
        """
        origin = headers.get("Origin")
        if origin and origin != self._local.url:
            raise Forbidden(f"A page of {origin} must not use the local SageMaker")
        action, *arguments = [unquote(part) for part in path.split("/")]
        route = self._routes.get((method, action))
        if route is None:
            known = ", ".join(f"{known_method} {name}" for known_method, name in self._routes)
            raise ResourceNotFound(f"{method} /_local/{path}: there is {known}")
        try:
            return route(arguments, headers, body)
        except IndexError as error:
            raise ResourceNotFound(f"{method} /_local/{path} lacks a name") from error

    def _health(self, _: list[str], __: Mapping[str, str], ___: bytes) -> Document:
        return {"home": str(self._local.home), "runtime": self._local.runtime, "pid": self._local.pid}

    def _overview(self, _: list[str], __: Mapping[str, str], ___: bytes) -> Document:
        jobs = [
            {
                "kind": kind.arn_type,
                "name": job[kind.name],
                "status": job[kind.status],
                "detail": job.get("FailureReason") or job.get("SecondaryStatus", ""),
                "created": job["CreationTime"],
            }
            for kind in JOBS
            for job in self._platform.store.all(kind)
        ]
        endpoints = [
            {
                "name": endpoint["EndpointName"],
                "status": endpoint["EndpointStatus"],
                "detail": endpoint.get("FailureReason", ""),
                "variants": [variant["VariantName"] for variant in endpoint.get("ProductionVariants", [])],
                "created": endpoint["CreationTime"],
            }
            for endpoint in self._platform.store.all(ENDPOINT)
        ]
        newest_first = sorted(jobs, key=lambda job: job["created"], reverse=True)
        return {"jobs": newest_first, "endpoints": endpoints, "runtime": self._local.runtime, "url": self._local.url}

    def _logs(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        kind, name = arguments[0], arguments[1]
        if kind == ENDPOINT.arn_type:
            return {"lines": self._platform.logs.tail(f"{ENDPOINT_GROUP}/{name}", "", LOG_LINES)}
        if kind not in GROUPS:
            raise ResourceNotFound(f"{kind} is none of {', '.join([*GROUPS, ENDPOINT.arn_type])}")
        return {"lines": self._platform.logs.tail(GROUPS[kind], f"{name}/", LOG_LINES)}

    def _metrics(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        return {"metrics": metric_points(self._platform.region, arguments[0])}

    def _interrupt(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        control = self._queue.control(self._platform.arn(TRAINING_JOB, arguments[0]))
        if control is None:
            raise ResourceNotFound(f"No training job {arguments[0]!r} is running")
        control.interrupt()
        return {}

    def _invoke(self, arguments: list[str], headers: Mapping[str, str], body: bytes) -> Document:
        endpoint = self._endpoints.find(arguments[0])
        if endpoint is None:
            raise ResourceNotFound(f"No endpoint {arguments[0]!r}")
        sent = {name: headers.get(name, "") for name in ("Content-Type", "Accept") if headers.get(name)}
        reply, variant_name = endpoint.invoke(Invocation(body, sent, contract.INVOCATION_TIMEOUT_SECONDS), None)
        try:
            text, encoding = reply.body.decode(), "text"
        except UnicodeDecodeError:
            text, encoding = base64.b64encode(reply.body).decode(), "base64"
        return {"variant": variant_name, "contentType": reply.content_type, "body": text, "encoding": encoding}

    def _add_fault(self, _: list[str], __: Mapping[str, str], body: bytes) -> Document:
        try:
            fault = json.loads(body)
        except ValueError as error:
            raise ValidationException(f"A fault is a JSON object: {error}") from error
        self.faults.add(fault)
        return {}

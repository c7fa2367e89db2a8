"""`/_local/...`: what has no counterpart in AWS, as JSON: for `client.py`, tests and the web page."""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from launcher.local import page
from launcher.local.client import LocalServer
from launcher.local.errors import ResourceNotFound, ServiceError, ValidationException
from launcher.local.faults import Faults
from launcher.local.jobs import Jobs
from launcher.local.platform import Platform
from launcher.local.store import TRAINING_JOB, Document


class Forbidden(ServiceError):
    """A web page of somebody else asks."""

    status = 403
    code = "Forbidden"


class Admin:
    """The routes below `/_local/`."""

    def __init__(self, local: LocalServer, platform: Platform, jobs: Jobs, faults: Faults) -> None:
        self._local = local
        self._platform = platform
        self._jobs = jobs
        self.faults = faults
        self._routes: dict[tuple[str, str], Callable[[list[str], Mapping[str, str], bytes], Any]] = {
            ("GET", "health"): self._health,
            ("GET", "overview"): self._overview,
            ("GET", "details"): self._details,
            ("GET", "logs"): self._logs,
            ("GET", "metrics"): self._metrics,
            ("POST", "interrupt"): self._interrupt,
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
        return {**page.overview(self._platform), "runtime": self._local.runtime, "home": str(self._local.home)}

    def _details(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        return page.details(self._platform, arguments[0], arguments[1])

    def _logs(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        return page.log(self._platform, arguments[0], arguments[1])

    def _metrics(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        return page.points(self._platform, arguments[0], arguments[1])

    def _interrupt(self, arguments: list[str], _: Mapping[str, str], __: bytes) -> Document:
        control = self._jobs.control(self._platform.arn(TRAINING_JOB, arguments[0]))
        if control is None:
            raise ResourceNotFound(f"No training job {arguments[0]!r} is running")
        control.interrupt()
        return {}

    def _add_fault(self, _: list[str], __: Mapping[str, str], body: bytes) -> Document:
        try:
            fault = json.loads(body)
        except ValueError as error:
            raise ValidationException(f"A fault is a JSON object: {error}") from error
        self.faults.add(fault)
        return {}

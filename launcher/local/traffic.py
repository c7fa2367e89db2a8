"""Which of an endpoint's deployments, and which of its components, answers a request."""

import random
import threading
from typing import Protocol

from launcher.local.calls import Instance
from launcher.local.component import Component
from launcher.local.deployment import Deployment
from launcher.local.errors import RuntimeValidationError
from launcher.local.served_container import Reply, StreamedReply
from launcher.local.serving import Invocation


class Served(Protocol):
    """What answers: a production variant, or an inference component."""

    name: str
    weight: float

    def release(self, instance: Instance) -> None: ...

    def invoke(self, instance: Instance, invocation: Invocation) -> Reply: ...

    def stream(self, instance: Instance, invocation: Invocation) -> StreamedReply: ...


class Traffic:
    """The shares of the requests of one endpoint; safe to use from any thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._lock = threading.Lock()  # so that a request's instance is taken from what the routes say
        self._routes: list[tuple[float, Deployment]] = []
        self.components: dict[str, Component] = {}

    def move(self, *routes: tuple[float, Deployment | None]) -> None:
        """Share the requests so from now on; of two deployments, the one that was there before comes last."""
        kept = [(share, deployment) for share, deployment in routes if deployment is not None and share > 0]
        with self._lock:
            self._routes = kept

    @property
    def deployments(self) -> list[Deployment]:
        """What gets requests."""
        return [deployment for _, deployment in self._routes]

    @property
    def in_service(self) -> Deployment | None:
        """What is in service; during an update, what was before; None where nothing is."""
        routes = self._routes
        return routes[-1][1] if routes else None

    def take(self, invocation: Invocation, target_variant: str | None) -> tuple[Deployment, Served, Instance]:
        """Choose what answers and take it, in one step: an update that moves the traffic waits for what was taken.

        Raises:
            ServiceError: see `Variant.acquire` and `Component.acquire`; RuntimeValidationError also where nothing is
                in service, or nothing has that name.
        """
        with self._lock:
            deployment = self.choose(invocation, target_variant)
            if invocation.component:
                component = self._component(invocation.component)
                return deployment, component, component.acquire(invocation)
            return deployment, *deployment.take(invocation, target_variant)

    def choose(self, invocation: Invocation, target_variant: str | None) -> Deployment:
        """The deployment that has the target, else the session, else one by its share; errors as `take`."""
        if not self._routes:
            raise RuntimeValidationError(f"Endpoint {self._endpoint} is not in service.")
        fitting = self._routes
        if target_variant is not None:
            fitting = [route for route in fitting if route[1].find(target_variant)] or fitting
        if invocation.session_id:
            fitting = [route for route in fitting if route[1].has_session(invocation.session_id)] or fitting
        return random.choices([route[1] for route in fitting], [route[0] for route in fitting])[0]

    def _component(self, name: str) -> Component:
        component = self.components.get(name)
        if component is None:
            raise RuntimeValidationError(f"Inference Component {name} not found on endpoint {self._endpoint}.")
        return component

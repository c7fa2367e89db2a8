"""Every endpoint by name: deployed, updated, deleted, and brought back by the next server."""

import shutil
import threading

from launcher.local.endpoint import Endpoint
from launcher.local.platform import Platform, together
from launcher.local.store import ENDPOINT, INFERENCE_COMPONENT, Document
from launcher.local.updater import RETAINED, Services, Update

INTERRUPTED = "The local SageMaker ended while the endpoint was updated to {}; it serves {} again."


class Endpoints:
    """Every running endpoint by name."""

    def __init__(self, platform: Platform, services: Services) -> None:
        self._platform = platform
        self._services = services
        self._endpoints: dict[str, Endpoint] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def start(self) -> None:
        """Start the endpoints that an earlier server had in service, and end the deletions that it had begun."""
        for document in self._platform.store.all(ENDPOINT):
            name = document["EndpointName"]
            if document["EndpointStatus"] == "Deleting":
                self._forget(name)
            elif document["EndpointStatus"] != "Failed":
                self._bring_back(document)

    def _bring_back(self, document: Document) -> None:
        name, config = document["EndpointName"], document["EndpointConfigName"]
        pending = document.get("PendingDeploymentSummary", {}).get("EndpointConfigName", config)
        note = (
            INTERRUPTED.format(pending, config) if document["EndpointStatus"] in ("Updating", "RollingBack") else None
        )
        members = {"PendingDeploymentSummary": None} if "PendingDeploymentSummary" in document else {}
        self._platform.store.update(ENDPOINT, name, EndpointStatus="Creating", **members)
        self.deploy(name, config, Update(retained=RETAINED, note=note))
        for component in self._platform.store.all(INFERENCE_COMPONENT):
            if component["EndpointName"] != name:
                continue
            if component["InferenceComponentStatus"] == "Deleting":
                self._platform.store.delete(INFERENCE_COMPONENT, component["InferenceComponentName"])
            else:
                self.place(component["InferenceComponentName"])

    def deploy(self, name: str, config_name: str, update: Update) -> None:
        """Bring a configuration into service, in the background; at the server's end that is left to the next one."""
        with self._lock:
            if self._is_closed:
                return
            endpoint = self._endpoints.get(name)
            if endpoint is None:
                endpoint = self._endpoints[name] = Endpoint(self._platform, self._services, name)
        endpoint.deploy(config_name, update)

    # --- inference components ---------------------------------------------------------------------------------------

    def place(self, component: str) -> None:
        """Start an inference component of the store on its endpoint, in the background."""
        document = self._platform.store.find(INFERENCE_COMPONENT, component) or {}
        endpoint = self.find(document["EndpointName"])
        if endpoint is not None:
            endpoint.place(document)

    def change_component(self, document: Document, specification: Document | None, copies: int) -> None:
        """Give a component so many copies, and perhaps another specification, in the background."""
        name, counts = document["InferenceComponentName"], {**document["RuntimeConfig"], "DesiredCopyCount": copies}
        members = {"InferenceComponentStatus": "Updating", "RuntimeConfig": counts}
        self._platform.store.update(INFERENCE_COMPONENT, name, **members)
        endpoint = self.find(document["EndpointName"])
        component = endpoint.component(name) if endpoint is not None else None
        if component is not None:
            component.change(specification, copies)

    def remove_component(self, name: str) -> None:
        """End a component in the background, then forget it."""
        threading.Thread(target=self._remove_component, args=(name,), daemon=True).start()

    def _remove_component(self, name: str) -> None:
        document = self._platform.store.find(INFERENCE_COMPONENT, name) or {}
        endpoint = self.find(document["EndpointName"])
        component = endpoint.component(name) if endpoint is not None else None
        if endpoint is not None and component is not None:
            component.stop()
            endpoint.forget_component(name)  # only now: a server that ends meanwhile waits for it
        self._platform.store.delete(INFERENCE_COMPONENT, name)

    # --- what there is ----------------------------------------------------------------------------------------------

    def find(self, name: str) -> Endpoint | None:
        with self._lock:
            return self._endpoints.get(name)

    def all(self) -> list[Endpoint]:
        with self._lock:
            return list(self._endpoints.values())

    def put_gauges(self) -> None:
        """Let every endpoint put what is measured at moments into CloudWatch."""
        for endpoint in self.all():
            endpoint.put_gauges()

    # --- autoscaling ------------------------------------------------------------------------------------------------

    def capacity(self, resource_id: str) -> int | None:
        """How many instances or copies a scalable target should have; None where that cannot be changed now."""
        kind, _, name = resource_id.partition("/")
        if kind == "inference-component":
            document = self._platform.store.find(INFERENCE_COMPONENT, name) or {}
            is_at_rest = document.get("InferenceComponentStatus") == "InService"
            return int(document["RuntimeConfig"]["DesiredCopyCount"]) if is_at_rest else None
        endpoint, variant_name = self._scaled(resource_id)
        return endpoint.capacity(variant_name) if endpoint is not None else None

    def set_capacity(self, resource_id: str, count: int) -> None:
        """Give a variant so many instances, or a component so many copies, in the background."""
        kind, _, name = resource_id.partition("/")
        document = self._platform.store.find(INFERENCE_COMPONENT, name) if kind == "inference-component" else None
        if document is not None:
            self.change_component(document, None, count)
            return
        endpoint, variant_name = self._scaled(resource_id)
        if endpoint is not None:
            endpoint.scale({variant_name: count})

    def _scaled(self, resource_id: str) -> tuple[Endpoint | None, str]:
        _, name, *_, variant_name = resource_id.split("/")
        return self.find(name), variant_name

    def delete(self, name: str) -> None:
        """End an endpoint in the background, then forget it."""
        threading.Thread(target=self._delete, args=(name,), name=f"delete {name}", daemon=True).start()

    def _delete(self, name: str) -> None:
        endpoint = self.find(name)
        if endpoint is not None:
            endpoint.stop(fail_queued=True)
        with self._lock:  # only now: a server that ends meanwhile waits for it
            self._endpoints.pop(name, None)
        self._forget(name)

    def _forget(self, name: str) -> None:
        shutil.rmtree(self._platform.home / "async" / name, ignore_errors=True)
        self._platform.store.delete(ENDPOINT, name)

    def shut_down(self) -> None:
        """End every container; the endpoints stay in the store and start again with the next server."""
        with self._lock:
            self._is_closed = True
        together(self.all(), lambda endpoint: endpoint.stop(fail_queued=False))

"""The models of one multi-model container: fetched, loaded, evicted and called as the service does.

Source of the sequence: "Custom Containers Contract for Multi-Model Endpoints".
"""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDone
from typing import Any
from urllib.parse import quote

from container import contract
from launcher.local import artifacts
from launcher.local.buckets import BucketError, Buckets, parse_s3_uri
from launcher.local.containers import Runtime
from launcher.local.errors import JobFailed, ModelError, ModelNotReady, RuntimeValidationError
from launcher.local.served_container import Reply, ServedContainer

MODELS_PATH = "/models"
LOAD_SECONDS = 360  # "loading goes on up to 360 s"
ATTEMPTS = 3  # a model may be evicted between its load and its invocation


class MultiModels:
    """Which models a container holds, the longest unused first."""

    def __init__(
        self, buckets: Buckets, runtime: Runtime, served: ServedContainer, definition: Mapping[str, Any]
    ) -> None:
        self._buckets = buckets
        self._runtime = runtime
        self._served = served
        self._prefix = definition["ModelDataUrl"].rstrip("/") + "/"
        self._keeps = definition.get("MultiModelConfig", {}).get("ModelCacheSetting", "Enabled") == "Enabled"
        self._lock = threading.Lock()
        self._loaded: OrderedDict[str, None] = OrderedDict()
        self._loading: dict[str, Future[None]] = {}
        self._executor = ThreadPoolExecutor(thread_name_prefix="load")

    def invoke(self, target: str, body: bytes, headers: Mapping[str, str], timeout: float) -> Reply:
        """`POST /models/{name}/invoke`, after a load where it is needed.

        Raises:
            ModelNotReady: it is still loading when the invocation's time is over; the loading goes on.
            ModelError: the container cannot load it.
            RuntimeValidationError: there is no such archive.
        """
        name = model_name(target)
        for _ in range(ATTEMPTS):
            self._ensure_loaded(name, target, headers, timeout)
            reply = self._served.request("POST", f"{MODELS_PATH}/{quote(name)}/invoke", body, headers, timeout)
            if reply.status == 404:
                self._forget(name)
            elif reply.status != 507 or not self._evict(keep=name):
                break
        if not self._keeps:
            self._unload(name)
        return reply

    def _ensure_loaded(self, name: str, target: str, headers: Mapping[str, str], timeout: float) -> None:
        """Load it once, however many ask at the same time."""
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
                return
            loading = self._loading.get(name)
            if loading is None:
                loading = self._loading[name] = self._executor.submit(self._load, name, target, headers)
        try:
            loading.result(timeout)
        except NotDone as error:
            raise ModelNotReady(f"Model {target} is still loading after {timeout:.3g} s; try again.") from error

    def _load(self, name: str, target: str, headers: Mapping[str, str]) -> None:
        try:
            self._fetch(name, target)
            reply = self._post_load(name, headers)
            while reply.status == 507 and self._evict(keep=name):
                reply = self._post_load(name, headers)
            if reply.status not in (200, 409):
                text = reply.body[:500].decode("utf-8", "replace")
                raise ModelError(
                    f"Failed to load model {target}: the container answered {reply.status} {text}",
                    OriginalStatusCode=reply.status,
                    OriginalMessage=text,
                    LogStreamArn=self._served.log.arn,
                )
            with self._lock:
                self._loaded[name] = None
        finally:
            with self._lock:
                del self._loading[name]

    def _fetch(self, name: str, target: str) -> None:
        directory = self._opt_ml.models / name / "model"
        if directory.exists():
            return
        uri = self._prefix + target.lstrip("/")
        try:
            artifacts.unpack(self._buckets.read(*parse_s3_uri(uri)), directory, uri)
        except (BucketError, JobFailed) as error:
            artifacts.remove_tree(directory.parent)
            raise RuntimeValidationError(f"Failed to download model data from {uri}: {error}") from error

    @property
    def _opt_ml(self) -> contract.OptMl:
        return self._served.container.spec.opt_ml

    def _post_load(self, name: str, headers: Mapping[str, str]) -> Reply:
        url = self._runtime.seen_path(self._opt_ml, self._opt_ml.models / name / "model")
        body = json.dumps({"model_name": name, "url": str(url)}).encode()
        target = {contract.TARGET_MODEL_HEADER: headers.get(contract.TARGET_MODEL_HEADER, "")}
        sent = {"Content-Type": "application/json", **target}
        return self._served.request("POST", MODELS_PATH, body, sent, LOAD_SECONDS)

    def _evict(self, keep: str) -> bool:
        """Unload the longest unused model; False if there is no other."""
        with self._lock:
            oldest = next((name for name in self._loaded if name != keep), None)
        if oldest is None:
            return False
        self._unload(oldest)
        return True

    def _unload(self, name: str) -> None:
        self._served.request("DELETE", f"{MODELS_PATH}/{quote(name)}", timeout=LOAD_SECONDS)
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._loaded.pop(name, None)


def model_name(target: str) -> str:
    """The opaque name under which a container knows a TargetModel."""
    return hashlib.sha256(target.encode()).hexdigest()[:32]

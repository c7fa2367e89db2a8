"""The models of a multi-model endpoint: loaded, listed, called and unloaded at the platform's word.

One registry, in one process: a model loaded through one connection is there for every other ("Custom Containers
Contract for Multi-Model Endpoints"). A name is opaque; it is the key and nothing else.
"""

import ctypes
import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from container.serve.exchange import (
    BadRequest,
    Conflict,
    HandlerFailed,
    NotFound,
    OutOfMemory,
    Request,
    Response,
    ServeError,
    json_response,
)
from container.serve.failures import classify, describe
from container.serve.plan import MODEL_COPIES, artifact_size, available_memory

if TYPE_CHECKING:  # it may import torch, and the server answers before that is done
    from container.serve.predictor import Predictor

logger = logging.getLogger(__name__)

PAGE = 100  # models in one answer to GET /models, and the most a caller may ask for
NAME_LIMIT = 1024
UNLOAD_SECONDS = 60  # an invocation may run so long; after it the model is let go while the last call still runs
RESERVE = 0.05  # of the available memory: what requests need while they run


@dataclass
class Entry:
    """One model the platform has asked for."""

    url: str
    predictor: "Predictor | None" = None
    """None while it loads: then it is not yet there for anybody but the next load, which gets 409."""
    calls: int = 0
    """In flight."""


class Registry:
    """Name -> model. `load_predictor` turns a directory into a predictor; `base` is what every url lies below."""

    def __init__(self, base: Path, load_predictor: Callable[[Path], "Predictor"], memory_bytes: int | None) -> None:
        self._base = base
        self._load_predictor = load_predictor
        self._memory_bytes = memory_bytes
        self._entries: dict[str, Entry] = {}
        self._changed = threading.Condition()

    def load(self, request: Request) -> Response:
        """`POST /models`: answers once the model can serve.

        Raises:
            BadRequest: the body is not `{"model_name": …, "url": …}`, or no such directory.
            Conflict: the name is loaded, or being loaded.
            OutOfMemory: it would not fit, or did not; nothing stays behind.
            HandlerFailed: the model or its code is broken; nothing stays behind.
        """
        name, directory, url = self._read_load(request)
        entry = Entry(url)
        with self._changed:
            if name in self._entries:
                raise Conflict(f"model {name!r} is loaded already")
            self._entries[name] = entry
        try:
            self._check_memory(directory)
            began = time.monotonic()
            predictor = self._load_predictor(directory)
        except BaseException as error:
            with self._changed:
                del self._entries[name]
            raise self._load_failed(name, error) from None
        with self._changed:
            entry.predictor = predictor
        logger.info("model %s loaded from %s in %.2f s", name, url, time.monotonic() - began)
        return json_response(200, {"status": f"model {name} loaded"})

    def _read_load(self, request: Request) -> tuple[str, Path, str]:
        from container.serve.codec import decode_json  # numpy: after the socket answers

        body = decode_json(request.body)
        if not isinstance(body, dict) or not all(isinstance(body.get(key), str) for key in ("model_name", "url")):
            raise BadRequest('expected {"model_name": "<name>", "url": "<directory>"}')
        name, url = body["model_name"], body["url"]
        if not name or len(name) > NAME_LIMIT:
            raise BadRequest(f"model_name has {len(name)} characters; 1 to {NAME_LIMIT} are allowed")
        if "\0" in url or not Path(url).resolve().is_relative_to(self._base.resolve()):
            raise BadRequest(f"url {url[:200]!r} is not below {self._base}")
        if not Path(url).is_dir():
            raise BadRequest(f"url {url[:200]!r} is no directory")
        return name, Path(url), url

    def _check_memory(self, directory: Path) -> None:
        need = artifact_size(directory) * MODEL_COPIES
        free = available_memory() * (1 - RESERVE)
        if self._memory_bytes is not None:
            with self._changed:
                held = sum(artifact_size(Path(entry.url)) for entry in self._entries.values() if entry.predictor)
            free = min(free, self._memory_bytes - held * MODEL_COPIES)
        if need > free:
            raise OutOfMemory(f"the model needs about {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free")

    def _load_failed(self, name: str, error: BaseException) -> ServeError:
        _release()
        if isinstance(error, ServeError):
            return error
        logger.error("model %s: %s", name, describe(error), exc_info=error)
        cause, fix = classify(error)
        if cause == "out-of-memory":
            return OutOfMemory("memory ran out while the model was loaded")
        return HandlerFailed(f"the model cannot be loaded [{cause}]; {fix}; the log says where")

    def names(self, limit: str | None, token: str | None) -> Response:
        """`GET /models`: a page of them, in the order they were loaded, and the token of the next page."""
        size = int(limit) if limit and limit.isdecimal() and 1 <= int(limit) <= PAGE else PAGE
        start = int(token) if token and token.isdecimal() else 0
        with self._changed:
            loaded = [(name, entry.url) for name, entry in self._entries.items() if entry.predictor]
        page: dict[str, Any] = {
            "models": [{"modelName": name, "modelUrl": url} for name, url in loaded[start : start + size]]
        }
        if start + size < len(loaded):
            page["nextPageToken"] = str(start + size)
        return json_response(200, page)

    def predictors(self) -> "list[Predictor]":
        """The models that can be invoked."""
        with self._changed:
            return [entry.predictor for entry in self._entries.values() if entry.predictor]

    def describe(self, name: str) -> Response:
        """`GET /models/{name}`."""
        with self._changed:
            return json_response(200, {"modelName": name, "modelUrl": self._entry(name).url})

    def unload(self, name: str) -> Response:
        """`DELETE /models/{name}`: answers once the running calls are done and the memory is given back."""
        with self._changed:
            entry = self._entry(name)
            del self._entries[name]
            self._changed.wait_for(lambda: entry.calls == 0, UNLOAD_SECONDS)
            entry.predictor = None
        _release()
        logger.info("model %s unloaded", name)
        return json_response(200, {"status": f"model {name} unloaded"})

    def borrow(self, name: str) -> "tuple[Predictor, Callable[[], None]]":
        """The model for one call, and what to call when it is over: it is not released before.

        Raises:
            NotFound: it is not loaded, or not any more.
        """
        with self._changed:
            entry = self._entry(name)
            entry.calls += 1
            assert entry.predictor is not None
            return entry.predictor, lambda: self._give_back(entry)

    def _give_back(self, entry: Entry) -> None:
        with self._changed:
            entry.calls -= 1
            self._changed.notify_all()

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name)
        if entry is None or entry.predictor is None:
            raise NotFound(f"model {name[:200]!r} is not loaded")
        return entry


def _release() -> None:
    """Give the memory of what nobody holds any more back to the system, so that the platform sees it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)

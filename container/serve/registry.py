"""The models of a multi-model endpoint: loaded, listed, called and unloaded at the platform's word.

One registry, in one process: a model loaded through one connection is there for every other ("Custom Containers
Contract for Multi-Model Endpoints"). A name is opaque; it is the key and nothing else.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from container.serve import memory
from container.serve.causes import classify
from container.serve.exchange import (
    BadRequest,
    Conflict,
    HandlerFailed,
    NotFound,
    OutOfMemory,
    Request,
    Response,
    ServeError,
    Unavailable,
    json_response,
)
from container.serve.failures import SLOW_SECONDS, describe, told_while_slow
from container.serve.plan import artifact_size
from container.serve.requirements import RequirementsError

if TYPE_CHECKING:  # it may import torch, and the server answers before that is done
    from container.serve.predictor import Predictor

logger = logging.getLogger(__name__)

PAGE = 100  # models in one answer to GET /models, and the most a caller may ask for
NAME_LIMIT = 1024
UNLOAD_SECONDS = 60  # an invocation may run so long; after it the model is let go while the last call still runs
LOAD_WAIT_SECONDS = 60  # for another model's load; the invocation that wanted this one has timed out by then
NUMBER_DIGITS = 15  # of what a caller may write where a page begins
RESERVE = 0.05  # of the available memory: what requests need while they run


@dataclass
class Entry:
    """One model the platform has asked for."""

    url: str
    number: int
    """Of this load among all: where a page of the list ends."""
    predictor: "Predictor | None" = None
    """None while it loads: then it is not yet there for anybody but the next load, which gets 409."""
    calls: int = 0
    """In flight."""


class Registry:
    """Name -> model. `load_predictor` turns a directory into a predictor; `base` is what every url lies below.

    Memory is measured, not guessed: what this process has taken since its first load against `memory_bytes`, and what
    the machine and the cgroup have left. A load past either is a 507, and the platform unloads others.
    """

    def __init__(self, base: Path, load_predictor: Callable[[Path], "Predictor"], memory_bytes: int | None) -> None:
        self._base = base
        self._load_predictor = load_predictor
        self._memory_bytes = memory_bytes
        self._entries: dict[str, Entry] = {}
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._one_load = threading.Lock()  # so that what the process grows by is this model's
        self._loading = ("", 0.0)
        """Which model loads now, and since when."""
        self._held_without_models: int | None = None

    def load(self, request: Request) -> Response:
        """`POST /models`: answers once the model can serve.

        Raises:
            BadRequest: the body is not `{"model_name": …, "url": …}`, or no such directory.
            Conflict: the name is loaded, or being loaded.
            OutOfMemory: it would not fit, or did not; nothing stays behind.
            HandlerFailed: the model or its code is broken; nothing stays behind.
            Unavailable: another model has been loading for too long.
        """
        name, directory, url = self._read_load(request)
        entry = Entry(url, next(self._numbers))
        with self._changed:
            if known := self._entries.get(name):
                raise Conflict(f"model {name!r} is {'loaded already' if known.predictor else 'being loaded'}")
            self._entries[name] = entry
        try:
            with self._turn(name) as began:
                entry.predictor, grown = self._load_measured(directory)
        except BaseException as error:
            refusal = _load_failed(name, error)
        else:
            seconds = time.monotonic() - began
            logger.info("model %r loaded from %r in %.2f s, %.1f MB", name, url, seconds, grown / 1e6)
            return json_response(200, {"status": f"model {name} loaded"})
        with self._changed:
            del self._entries[name]
        memory.give_back()  # out here the error and what its frames held of the model are gone
        raise refusal

    @contextmanager
    def _turn(self, name: str) -> Iterator[float]:
        """One load at a time; yields when it began."""
        if not self._one_load.acquire(timeout=LOAD_WAIT_SECONDS):
            other, since = self._loading
            raise Unavailable(f"model {other!r} has been loading for {time.monotonic() - since:.0f} s; try again")
        self._loading = (name, time.monotonic())
        try:
            with told_while_slow(self._slow_load, SLOW_SECONDS):
                yield self._loading[1]
        finally:
            self._one_load.release()

    def _slow_load(self, where: str, seconds: float) -> str:
        return (
            f"model {self._loading[0]!r} is slow to load [slow-load] {where}: it has been loading for {seconds:.0f} s, "
            "and no other model can be loaded meanwhile; fix: load less, or find what the code waits for"
        )

    def _load_measured(self, directory: Path) -> "tuple[Predictor, int]":
        """The model, and the bytes by which this process grew."""
        before = memory.held()
        if self._held_without_models is None:
            self._held_without_models = before
        free = int(memory.available() * (1 - RESERVE))
        budget = free if self._memory_bytes is None else self._memory_bytes - before + self._held_without_models
        need = artifact_size(directory)
        if need > min(free, budget):
            raise OutOfMemory(
                f"the model needs about {need / 1e6:.0f} MB and {min(free, budget) / 1e6:.0f} MB are free"
            )
        memory.bound_growth(free)
        predictor = self._load_predictor(directory)
        grown = memory.held() - before
        if grown > budget:
            raise OutOfMemory(f"the model took {grown / 1e6:.0f} MB and {budget / 1e6:.0f} MB were free")
        return predictor, max(0, grown)

    def _read_load(self, request: Request) -> tuple[str, Path, str]:
        from container.serve.codec import decode_json  # numpy: after the socket answers

        body = decode_json(request.body)
        if not isinstance(body, dict) or not all(isinstance(body.get(key), str) for key in ("model_name", "url")):
            raise BadRequest('expected {"model_name": "<name>", "url": "<directory>"}')
        name, url = body["model_name"], body["url"]
        if not name or len(name) > NAME_LIMIT:
            raise BadRequest(f"model_name has {len(name)} characters; 1 to {NAME_LIMIT} are allowed")
        return name, self._directory(url), url

    def _directory(self, url: str) -> Path:
        try:
            path = Path(url).resolve()
            is_below, is_there = path.is_relative_to(self._base.resolve()), path.is_dir()
        except (OSError, RuntimeError, ValueError):  # too long, a link to itself, a zero byte
            raise BadRequest(f"url {url[:200]!r} is no path") from None
        if not is_below:
            raise BadRequest(f"url {url[:200]!r} is not below {self._base}")
        if not is_there:
            raise BadRequest(f"url {url[:200]!r} is no directory")
        return Path(url)

    def names(self, limit: str | None, token: str | None) -> Response:
        """`GET /models`: a page of them, in the order they were loaded, and the token of the next page."""
        size, after = min(_number(limit) or PAGE, PAGE), _number(token)
        with self._changed:
            loaded = [
                (entry.number, {"modelName": name, "modelUrl": entry.url})
                for name, entry in self._entries.items()
                if entry.predictor and entry.number > after
            ]
        page: dict[str, Any] = {"models": [described for _, described in loaded[:size]]}
        if len(loaded) > size:
            page["nextPageToken"] = str(loaded[size - 1][0])  # a model unloaded meanwhile moves no other one
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
        memory.give_back()
        memory.bound_growth(int(memory.available() * (1 - RESERVE)))
        logger.info("model %r unloaded", name)
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


def _number(text: str | None) -> int:
    """0 where it is none."""
    return int(text) if text and text.isdecimal() and len(text) <= NUMBER_DIGITS else 0


def _load_failed(name: str, error: BaseException) -> ServeError:
    """The answer to a load that failed; the log has the rest."""
    if isinstance(error, ServeError):
        return error.with_traceback(None)
    logger.error("model %r: %s", name, describe(error), exc_info=error)
    cause, fix = classify(error)
    if cause == "out-of-memory":
        return OutOfMemory("memory ran out while the model was loaded")
    if isinstance(error, RequirementsError):
        return BadRequest(f"the model cannot be loaded [{cause}]: {error}; {fix}")
    return HandlerFailed(f"the model cannot be loaded [{cause}]; {fix}; the log says where")

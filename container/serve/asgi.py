"""The production door: `/ping` and invocations straight to the core, everything else through the Flask app."""

import asyncio
import functools
import io
import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from a2wsgi import WSGIMiddleware

from container import contract
from container.serve import heads
from container.serve.app import create_app
from container.serve.bidirectional import Conversations
from container.serve.call import Call
from container.serve.exchange import Request, Response, ServeError
from container.serve.front import Front
from container.serve.metrics import INVOKE_MODEL_ROUTE, MODELS_ROUTE
from container.serve.service import Service
from container.serve.spool import SPOOL_BYTES, WRITE_BYTES, Spool
from container.serve.waiting import FEW_BYTES, Share, Waiting

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

FLASK_THREADS = 8  # of the routes that read; predictions need none
MODEL_THREADS = 16  # a load may take minutes, and an unload waits for running requests
STREAM_THREADS = 32  # streams that are produced at the same time
DISK_THREADS = 4  # large bodies that are written at the same time


class Door:
    """An ASGI application over a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.draining = False
        """Set at shutdown: every answer then asks its client to open no further request on the connection."""
        app = _terminated(create_app(service))
        self._flask: Any = WSGIMiddleware(app, workers=FLASK_THREADS)
        self._models: Any = WSGIMiddleware(app, workers=MODEL_THREADS)
        self.conversations = Conversations(service)
        self._streams = ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="stream")
        self._disk = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        self.waiting = Waiting(service.plan.max_waiting_bytes)
        self.body_bytes = min(SPOOL_BYTES, service.plan.max_request_bytes)
        """A body that is larger comes the way of ASGI, which keeps it on disk, or refuses it."""
        self.few_bytes = min(FEW_BYTES, self.body_bytes)
        """Of a body that is larger account is kept."""
        self._front: Front | None = None

    def front(self) -> Front:
        """The way to the core from the event loop that runs here."""
        if self._front is None:
            self._front = Front(self.service, asyncio.get_running_loop())
        return self._front

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.conversations(scope, receive, send)
            return
        path = scope["path"] if scope["type"] == "http" else ""
        if path == contract.INVOCATIONS_PATH and scope["method"] == "POST":
            await self._invoke(scope, receive, send, None)
        elif path.startswith("/models/") and (model := self.invoked_model(path, scope["method"])):
            await self._invoke(scope, receive, send, model)
        elif path == contract.HEALTH_PATH and scope["method"] in ("GET", "POST"):
            await self.send(self.ping(), receive, send)
        elif path.startswith(MODELS_ROUTE) and scope["method"] != "GET":
            await self._models(scope, receive, send)
        else:
            values = heads.combined(scope["headers"]).items()
            headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in values]
            await self._flask({**scope, "headers": headers}, receive, send)

    def invoked_model(self, path: str, method: str) -> str | None:
        """The name in `POST /models/{name}/invoke`, already percent-decoded; it may hold anything, slashes too."""
        if self.service.registry is None or method != "POST" or not path.endswith("/invoke"):
            return None
        return path[len("/models/") : -len("/invoke")]

    def ping(self) -> Response:
        """The answer to `/ping`, counted."""
        return self._counted(contract.HEALTH_PATH, self.service.ping())

    def refused(self, error: ServeError, model: str | None) -> Response:
        """The answer to an invocation that does not reach the core, counted."""
        route = contract.INVOCATIONS_PATH if model is None else INVOKE_MODEL_ROUTE
        return self._counted(route, error.response())

    def _counted(self, route: str, response: Response) -> Response:
        if self.service.metrics is not None:
            self.service.metrics.count(route, response.status)
        return response

    async def _invoke(self, scope: Scope, receive: Receive, send: Send, model: str | None) -> None:
        headers = heads.combined(scope["headers"])
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > self.service.plan.max_request_bytes:
            await self.send(self.refused(self.service.too_large(int(announced)), model), receive, send)
            return
        share = Share(self.waiting)
        try:
            body = await read_body(receive, self.service, share, self._disk)
            if isinstance(body, bytes):
                await self._compute(Request("POST", scope["path"], headers, body), model, receive, send)
            elif body is not None:  # else the client left
                await self._compute_spooled(Request("POST", scope["path"], headers), body, model, receive, send)
        except ServeError as error:
            await self.send(self.refused(error, model), receive, send)
        finally:
            share.release()

    async def _compute_spooled(
        self, request: Request, spool: Spool, model: str | None, receive: Receive, send: Send
    ) -> None:
        try:
            await self._compute(request, model, receive, send, spool)
        finally:
            await asyncio.get_running_loop().run_in_executor(self._disk, spool.close)  # where nobody has read it

    async def _compute(
        self, request: Request, model: str | None, receive: Receive, send: Send, spool: Spool | None = None
    ) -> None:
        front = self.front()
        waiter = FutureWaiter(front, request, spool)
        front.submit(waiter, model)
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((waiter.answer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            if not waiter.answer.done():  # the client left, or the server is being stopped
                front.forget(waiter)
        if waiter.answer.done():
            await self.send(waiter.answer.result(), receive, send)

    async def send(self, response: Response, receive: Receive, send: Send) -> None:
        """Send an answer as ASGI events."""
        body = response.body
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        if self.draining:
            headers.append((b"connection", b"close"))
        if body != b"":
            headers.append((b"content-type", response.content_type.encode("latin-1")))
        if isinstance(body, bytes):
            headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self._stream(body, receive, send)

    async def _stream(self, pieces: Iterator[bytes], receive: Receive, send: Send) -> None:
        """Send each piece as soon as the handler has produced it.

        An error in between aborts the connection: after the first byte nothing else tells the caller. A client that
        left ends the handler's generator.
        """
        loop = asyncio.get_running_loop()
        gone = asyncio.create_task(_gone(receive))
        try:
            while not gone.done():
                piece = await loop.run_in_executor(self._streams, next, pieces, None)
                if piece is None:
                    await send({"type": "http.response.body", "body": b""})
                    return
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            logger.info("the client left a stream; its handler is ended")
        finally:
            gone.cancel()
            close = getattr(pieces, "close", None)
            if close is not None:
                await loop.run_in_executor(self._streams, close)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class FutureWaiter:
    """Waits for one answer in a task."""

    def __init__(self, front: Front, request: Request, spool: Spool | None) -> None:
        self.answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.call = Call(request, lambda response: front.deliver(self, response))
        self.call.spool = spool

    def take(self, response: Response) -> None:
        del self.call  # which knows this waiter: a circle would keep the body until the garbage is collected
        if not self.answer.done():
            self.answer.set_result(response)


async def read_body(receive: Receive, service: Service, share: Share, disk: Executor) -> bytes | Spool | None:
    """The whole request body; from `SPOOL_BYTES` on in a file, which threads of `disk` write: the loop never waits.

    None where the client left before its end. `share` holds what lies in memory.

    Raises:
        BodyTooLarge: it is over the server's limit.
        Unavailable: it cannot be kept, in memory or on disk.
    """
    limit = service.plan.max_request_bytes
    pieces, more = await _next_piece(receive, min(limit, SPOOL_BYTES) + 1, share)
    if pieces is not None and len(pieces) > limit:
        raise service.too_large(len(pieces))
    if not more:
        return pieces
    run = functools.partial(asyncio.get_running_loop().run_in_executor, disk)
    spool, whole = await run(Spool), False
    try:
        while pieces is not None:
            await run(spool.write, pieces)
            share.release()
            if spool.length > limit:
                raise service.too_large(spool.length)
            if not more:
                whole = True
                return spool
            pieces, more = await _next_piece(receive, WRITE_BYTES, share)
        return None
    finally:
        if not whole:
            await run(spool.close)


async def _next_piece(receive: Receive, size: int, share: Share) -> tuple[bytes | None, bool]:
    """At least `size` bytes of the body, or all that is left of it; and whether more follows.

    None where the client left.

    Raises:
        Unavailable: memory holds too much of others already.
    """
    pieces = io.BytesIO()  # grows in place, and hands out what it holds without a copy
    while (message := await receive())["type"] == "http.request":
        piece, more = message["body"], message.get("more_body", False)
        share.add(len(piece))
        if not pieces.tell() and (not more or len(piece) >= size):
            return piece, more
        pieces.write(piece)
        if not more or pieces.tell() >= size:
            return pieces.getvalue(), more
    return None, False


def _terminated(app: Callable[..., Any]) -> Callable[..., Any]:
    """The WSGI app told that its input ends by itself, so that a chunked body is read without a Content-Length."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input_terminated"] = True
        return app(environ, start_response)

    return wrapped

"""The production door: `/ping` and invocations straight to the core, everything else through the Flask app."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from a2wsgi import WSGIMiddleware

from container import contract
from container.serve.app import create_app
from container.serve.call import Call
from container.serve.exchange import Request, Response
from container.serve.metrics import INVOKE_MODEL_ROUTE
from container.serve.service import Service

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Answer = asyncio.Future[Response]

FLASK_THREADS = 16  # management routes: rare, but a load may hold one for minutes, and predictions need none
STREAM_THREADS = 32  # streams that are produced at the same time
LOOK_SECONDS = 0.25  # how soon a deadline or a client that left is noticed; a shorter request never pays for it


class Door:
    """An ASGI application over a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.draining = False
        """Set at shutdown: every answer then asks its client to open no further request on the connection."""
        self._flask: Any = WSGIMiddleware(_terminated(create_app(service)), workers=FLASK_THREADS)
        self._streams = ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="stream")
        self._mailbox: Mailbox | None = None
        self._waiting: dict[Answer, tuple[Call, Receive]] = {}
        self._watch: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == contract.INVOCATIONS_PATH and scope["method"] == "POST":
            await self._invoke(scope, receive, send, None)
        elif path.startswith("/models/") and (model := self._invoked_model(path, scope["method"])):
            await self._invoke(scope, receive, send, model)
        elif path == contract.HEALTH_PATH and scope["method"] in ("GET", "POST"):
            await self._send(self._counted(contract.HEALTH_PATH, self.service.ping()), receive, send)
        else:
            await self._flask(scope, receive, send)

    def _invoked_model(self, path: str, method: str) -> str | None:
        """The name in `POST /models/{name}/invoke`, already percent-decoded; it may hold anything, slashes too."""
        if self.service.registry is None or method != "POST" or not path.endswith("/invoke"):
            return None
        return path[len("/models/") : -len("/invoke")]

    async def _invoke(self, scope: Scope, receive: Receive, send: Send, model: str | None) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self.service.plan.max_request_bytes
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            too_large = self.service.too_large(int(announced)).response()
            route = contract.INVOCATIONS_PATH if model is None else INVOKE_MODEL_ROUTE
            await self._send(self._counted(route, too_large), receive, send)
            return
        body = await read_body(receive, limit)
        if body is None:  # the client left
            return
        if self._mailbox is None:
            self._mailbox = Mailbox(asyncio.get_running_loop())
        mailbox = self._mailbox
        answer: Answer = mailbox.loop.create_future()
        call = Call(Request("POST", scope["path"], headers, body), lambda response: mailbox.deliver(answer, response))
        self._waiting[answer] = call, receive
        if self._watch is None:
            self._watch = mailbox.loop.create_task(self._look_after_waiting())
        try:
            self.service.submit(call, model)
            response = await answer
        except asyncio.CancelledError:
            call.cancelled = True
            if not answer.cancelled():  # the server is being stopped; else the client left, and nobody reads an answer
                raise
            return
        finally:
            del self._waiting[answer]
        self.service.answered(call, response)
        await self._send(response, receive, send)

    def _counted(self, route: str, response: Response) -> Response:
        if self.service.metrics is not None:
            self.service.metrics.count(route, response.status)
        return response

    async def _look_after_waiting(self) -> None:
        """While requests wait: notice clients that leave, and answer what is past its deadline."""
        watched: dict[Answer, asyncio.Task[None]] = {}
        while self._waiting:
            await asyncio.sleep(LOOK_SECONDS)
            for answer, (call, receive) in list(self._waiting.items()):
                age = self.service.age(call)
                if age > self.service.plan.request_timeout_seconds:
                    call.cancelled = True
                    if not answer.done():
                        answer.set_result(self.service.deadline_exceeded(call).response())
                elif age > LOOK_SECONDS and answer not in watched:
                    watched[answer] = asyncio.create_task(_cancel_when_gone(call, answer, receive))
            for answer in [answer for answer in watched if answer not in self._waiting]:
                watched.pop(answer).cancel()
        for task in watched.values():
            task.cancel()
        self._watch = None

    async def _send(self, response: Response, receive: Receive, send: Send) -> None:
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


async def _cancel_when_gone(call: Call, answer: Answer, receive: Receive) -> None:
    await _gone(receive)
    call.cancelled = True
    answer.cancel()


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole request body, one piece past `limit` at most; None where the client left before its end."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return message["body"]
    pieces, length = [], 0
    while message["type"] == "http.request":
        pieces.append(message["body"])
        length += len(message["body"])
        if not message.get("more_body", False) or length > limit:
            return b"".join(pieces)
        message = await receive()
    return None


class Mailbox:
    """Brings answers from the compute threads to the event loop, waking it once for all that are ready."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ready: deque[tuple[Answer, Response]] = deque()
        self._woken = False

    def deliver(self, answer: Answer, response: Response) -> None:
        """Give the answer; from any thread."""
        self._ready.append((answer, response))
        if not self._woken:
            self._woken = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped and nobody waits
                self.loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False  # before looking: what is delivered from here on wakes the loop again
        while self._ready:
            answer, response = self._ready.popleft()
            if not answer.done():
                answer.set_result(response)


def _terminated(app: Callable[..., Any]) -> Callable[..., Any]:
    """The WSGI app told that its input ends by itself, so that a chunked body is read without a Content-Length."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input_terminated"] = True
        return app(environ, start_response)

    return wrapped

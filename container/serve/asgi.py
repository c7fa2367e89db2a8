"""The production door: `/ping` and `/invocations` straight to the core, everything else through the Flask app."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from a2wsgi import WSGIMiddleware

from container import contract
from container.serve.app import create_app
from container.serve.call import Call
from container.serve.exchange import Request, Response
from container.serve.service import Service

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

FLASK_THREADS = 4  # management and documentation routes: rare, and never in the way of predictions
STREAM_THREADS = 32  # streams that are produced at the same time


class Door:
    """An ASGI application over a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._flask: Any = WSGIMiddleware(_terminated(create_app(service)), workers=FLASK_THREADS)
        self._streams = ThreadPoolExecutor(STREAM_THREADS, thread_name_prefix="stream")
        self._mailbox: Mailbox | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path == contract.INVOCATIONS_PATH and scope["method"] == "POST":
            await self._invoke(scope, receive, send)
        elif path == contract.HEALTH_PATH and scope["method"] in ("GET", "POST"):
            await self._send(self.service.ping(), send)
        else:
            await self._flask(scope, receive, send)

    async def _invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        limit = self.service.plan.max_request_bytes
        announced = headers.get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            await self._send(self.service.too_large(int(announced)).response(), send)
            return
        body = await read_body(receive, limit)
        if body is None:  # the client left
            return
        if self._mailbox is None:
            self._mailbox = Mailbox(asyncio.get_running_loop())
        answer: asyncio.Future[Response] = self._mailbox.loop.create_future()
        mailbox = self._mailbox
        request = Request("POST", contract.INVOCATIONS_PATH, headers, body)
        self.service.submit(Call(request, lambda response: mailbox.deliver(answer, response)))
        await self._send(await answer, send)

    async def _send(self, response: Response, send: Send) -> None:
        body = response.body
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        if body != b"":
            headers.append((b"content-type", response.content_type.encode("latin-1")))
        if isinstance(body, bytes):
            headers.append((b"content-length", b"%d" % len(body)))
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self._stream(body, send)

    async def _stream(self, pieces: Iterator[bytes], send: Send) -> None:
        """Send each piece as soon as the handler has produced it; an error in between aborts the connection."""
        loop = asyncio.get_running_loop()
        while (piece := await loop.run_in_executor(self._streams, next, pieces, None)) is not None:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole request body, one byte past `limit` at most; None where the client left before its end."""
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
        self._ready: deque[tuple[asyncio.Future[Response], Response]] = deque()
        self._woken = False

    def deliver(self, future: "asyncio.Future[Response]", response: Response) -> None:
        self._ready.append((future, response))
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._woken = False  # before looking: what is delivered from here on wakes the loop again
        while self._ready:
            future, response = self._ready.popleft()
            if not future.done():
                future.set_result(response)


def _terminated(app: Callable[..., Any]) -> Callable[..., Any]:
    """The WSGI app told that its input ends by itself, so that a chunked body is read without a Content-Length."""

    def wrapped(environ: dict[str, Any], start_response: Any) -> Any:
        environ["wsgi.input_terminated"] = True
        return app(environ, start_response)

    return wrapped

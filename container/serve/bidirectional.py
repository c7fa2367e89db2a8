"""Bidirectional streaming: WebSocket connections to the handler's `bidirectional_stream_fn`.

Each conversation has a thread of its own, in which the handler reads messages and yields answers at its own pace; what
it does there delays no other conversation and no `/ping`. A message is `str` (a text frame) or `bytes` (a binary
frame), whole, however many frames it came in. Frames, pings and the closing handshake are the websockets library's.

    client -> frames -> Messages -> bidirectional_stream_fn -> send -> frames -> client
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from container import contract
from container.serve.batcher import use_cores
from container.serve.exchange import HandlerFailed, NotFound, Request, Response, ServeError, Unavailable
from container.serve.service import Service

if TYPE_CHECKING:
    from container.serve.predictor import Predictor

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = str | bytes
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_CONVERSATIONS = 64  # in one process: each has a thread
MAX_WAITING_BYTES = 4 * 1024**2  # of messages that the handler has not read; then the client is read no further
MAX_MESSAGE_BYTES = contract.REALTIME_PAYLOAD_BYTES
DRAIN_SECONDS = 15  # of the 25 in which everything must have ended after SIGTERM
REASON_BYTES = 123  # a close frame holds no more

# Close codes of RFC 6455 and its registry.
DONE = 1000
REFUSED = 1008  # the handler raised a ServeError that is the caller's fault
FAILED = 1011
RESTARTING = 1012


def websocket_protocol(**arguments: Any) -> asyncio.Protocol:
    """Uvicorn's WebSocket connection; imported when the first one comes, for few servers ever see one."""
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

    return WebSocketsSansIOProtocol(**arguments)


class Messages:
    """What the client has sent: the handler iterates over it, with `for` or `async for`, until the client is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        self._waiting_bytes = 0
        self._room = asyncio.Event()
        self._room.set()

    async def put(self, message: Message) -> None:
        """Hand a message over; waits while too much waits already. On the server's loop."""
        await self._room.wait()
        self._count(len(message))
        self._queue.put(message)

    def end(self) -> None:
        """There will be no further message; from any thread."""
        self._queue.put(None)

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        message = self._queue.get()
        if message is None:
            self._queue.put(None)  # for whoever asks again
            raise StopIteration
        self._loop.call_soon_threadsafe(self._count, -len(message))
        return message

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        message = await asyncio.to_thread(next, self, None)
        if message is None:
            raise StopAsyncIteration
        return message

    def _count(self, size: int) -> None:
        self._waiting_bytes += size
        if self._waiting_bytes < MAX_WAITING_BYTES:
            self._room.set()
        else:
            self._room.clear()


class Conversation:
    """One connection: the client's messages to the handler, the handler's answers to the client."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self.messages = Messages(self._loop)
        self.restarting = False
        """Set where the server asked the handler to come to its end."""
        self._ended: asyncio.Future[tuple[int, str]] = self._loop.create_future()

    async def hold(self, predictor: "Predictor", request: Request, receive: Receive, torch_threads: int) -> None:
        """Carry messages both ways until the handler ends, then close the connection and say how it went."""

        def run() -> None:
            use_cores(torch_threads)
            code, reason = self._answer(predictor, request)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended without this handler
                self._loop.call_soon_threadsafe(self._end, code, reason)

        threading.Thread(target=run, name="conversation", daemon=True).start()
        reading = asyncio.create_task(self._read(receive))
        try:
            code, reason = await self._ended
        finally:
            reading.cancel()
            self.messages.end()
        if code == DONE and self.restarting:
            code, reason = RESTARTING, "the server restarts"
        try:
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except OSError:  # the client has gone
            return

    def finish(self) -> None:
        """Have the handler come to its end: its messages end here."""
        self.restarting = True
        self.messages.end()

    def _end(self, code: int, reason: str) -> None:
        if not self._ended.done():
            self._ended.set_result((code, reason.encode()[:REASON_BYTES].decode("utf-8", "ignore")))

    async def _read(self, receive: Receive) -> None:
        while (event := await receive())["type"] == "websocket.receive":
            text = event.get("text")
            await self.messages.put(event["bytes"] if text is None else text)
        self.messages.end()

    def _answer(self, predictor: "Predictor", request: Request) -> tuple[int, str]:
        """Run the handler to its end; returns close code and reason. What it raises ends this conversation alone."""
        try:
            answers = predictor.converse(request, self.messages)
            if isinstance(answers, AsyncIterator):
                asyncio.run(self._deliver_async(answers))
            else:
                self._deliver(answers)
        except _Gone:
            return DONE, ""
        except ServeError as error:
            if error.status < 500:
                return REFUSED, str(error)
            logger.error("a conversation failed", exc_info=error)
            return FAILED, str(error)
        except (Exception, SystemExit) as error:
            logger.error("a conversation failed", exc_info=error)
            return FAILED, "the handler failed; the log says how"
        return DONE, ""

    def _deliver(self, answers: Iterator[Any]) -> None:
        try:
            for answer in answers:
                self._on_server(self._give(answer)).result()
        finally:
            if close := getattr(answers, "close", None):
                close()

    async def _deliver_async(self, answers: AsyncIterator[Any]) -> None:
        try:
            async for answer in answers:
                await asyncio.wrap_future(self._on_server(self._give(answer)))
        finally:
            if close := getattr(answers, "aclose", None):
                await close()
            self.messages.end()  # a read that still waits would keep this thread

    def _on_server(self, coroutine: Coroutine[Any, Any, None]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _give(self, answer: Any) -> None:
        event: dict[str, Any]
        if isinstance(answer, str):
            event = {"type": "websocket.send", "text": answer}
        elif isinstance(answer, bytes | bytearray | memoryview):
            event = {"type": "websocket.send", "bytes": bytes(answer)}
        else:
            raise HandlerFailed(f"bidirectional_stream_fn yielded {type(answer).__name__}; yield str or bytes")
        try:
            await self._send(event)
        except OSError:
            raise _Gone from None


class _Gone(Exception):
    """The client has left."""


class Conversations:
    """All of a process: how many there may be, and how they end when the server does."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._open: set[Conversation] = set()
        self._draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One WebSocket connection, the ASGI way."""
        await receive()  # websocket.connect
        try:
            predictor = self._predictor(scope["path"])
        except ServeError as error:
            await _refuse(error.response(), send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        await send({"type": "websocket.accept"})
        conversation = Conversation(send)
        self._open.add(conversation)
        try:
            request = Request("GET", scope["path"], headers, query=query)
            await conversation.hold(predictor, request, receive, self._service.plan.torch_threads)
        finally:
            self._open.discard(conversation)

    def _predictor(self, path: str) -> "Predictor":
        """The model that converses here.

        Raises:
            NotFound: none does.
            Unavailable: it is not loaded yet, the server ends, or as many converse as may.
        """
        if self._service.registry is not None or path != contract.BIDIRECTIONAL_STREAM_PATH:
            raise NotFound(f"nothing is streamed at {path[:200]!r}")
        predictors = self._service.predictors()
        if not predictors:
            raise Unavailable("the model is being loaded; try again")
        if not predictors[0].converses:
            raise NotFound("this model has no bidirectional_stream_fn")
        if self._draining:
            raise Unavailable("the server ends; try again")
        if len(self._open) >= MAX_CONVERSATIONS:
            raise Unavailable(f"{MAX_CONVERSATIONS} conversations are held already; try again")
        return predictors[0]

    async def drain(self) -> None:
        """Let no conversation begin, and have those that run come to their end, for some seconds."""
        self._draining = True
        for conversation in self._open:
            conversation.finish()
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
        while self._open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)


async def _refuse(response: Response, send: Send) -> None:
    headers = [(b"content-type", response.content_type.encode()), (b"connection", b"close")]
    headers += [(name.lower().encode(), value.encode()) for name, value in response.headers]
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": response.body})

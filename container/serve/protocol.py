"""HTTP on one connection: invocations and pings go straight to the core, everything else the ASGI way.

Parsing and all that is rare are uvicorn's and httptools'. What is frequent is shorter here: no task, no ASGI scope, no
events, one write per answer. A request takes the short way when nothing before it on its connection is unanswered; a
pipelined one takes the ASGI way, so that answers keep the order of their requests.
"""

import asyncio
import io
import sys
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from container import contract
from container.serve import heads
from container.serve.asgi import Door
from container.serve.call import Call
from container.serve.exchange import HandlerFailed, Request, Response, Unavailable
from container.serve.front import Front
from container.serve.waiting import Share

INVOCATIONS = contract.INVOCATIONS_PATH.encode()
HEALTH = contract.HEALTH_PATH.encode()
LARGE_BYTES = 65536  # from here on a body is not copied behind its head
HEAD_LIMIT_BYTES = 65536  # of request line and headers, where they come in several pieces; nginx takes 32 KB
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
RECEIVE_SECONDS = 60.0  # for a whole head, and for each piece of a body after the last: nginx gives them as much
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
BETWEEN, IN_HEAD, IN_BODY, IN_CHUNK_HEAD = range(4)  # where in a request the bytes are that come next
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange:
    """One request on the short way and its answer; uvicorn takes it for the cycle that the connection is in."""

    __slots__ = (
        "_pieces",
        "body",
        "call",
        "disconnected",
        "headers",
        "keep_alive",
        "length",
        "protocol",
        "response_complete",
        "path",
        "model",
        "share",
    )

    call: Call
    """There once the body is complete."""

    def __init__(self, protocol: "Protocol", path: str, model: str | None, headers: dict[str, str]) -> None:
        self.protocol = protocol
        self.path = path
        self.model = model
        self.headers = headers
        self.keep_alive = protocol.parser.should_keep_alive() and protocol.parser.get_http_version() != "1.0"
        self.disconnected = self.response_complete = False
        self.body = b""
        self.length = 0
        self.share: Share | None = None
        """Of the memory for bodies that wait, where this one is not small."""
        self._pieces: io.BytesIO | None = None

    def add(self, piece: bytes) -> None:
        """Take a piece of the body. A buffer grows in place, and hands out what it holds without a copy."""
        self.length += len(piece)
        if self._pieces is not None:
            self._pieces.write(piece)
        elif not self.body:
            self.body = piece
        else:
            self._pieces = io.BytesIO()
            self._pieces.write(self.body)
            self._pieces.write(piece)
            self.body = b""

    def request(self) -> Request:
        """The request, once its body is complete."""
        body, self.body = self.body or (self._pieces.getvalue() if self._pieces else b""), b""
        self._pieces = None
        return Request("POST", self.path, self.headers, body)

    def deliver(self, response: Response) -> None:
        """Take the answer from any thread."""
        self.protocol.front.deliver(self, response)

    def take(self, response: Response) -> None:
        """Send the answer."""
        del self.call  # the connection keeps the exchange until the next one, and need not keep its body
        self.protocol.answer(self, response)

    def release(self) -> None:
        """Hold nothing of the body any more."""
        if self.share is not None:
            self.share.release()
            self._pieces = None

    @property
    def message_event(self) -> "Exchange":
        return self

    def set(self) -> None:
        """Uvicorn would wake here who waits for more of the body or for the client to leave."""


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a short way through."""

    app: Door
    _defaults: tuple[Any, bytes] = (None, b"")
    """uvicorn's list of headers that every answer has, and how they look on the wire."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.front: Front = self.app.front()
        self._current: Exchange | None = None
        """On the short way: its body is being received, or it waits for its answer."""
        self._receiving = False
        self._idle_since: float | None = self.loop.time()
        self._place = BETWEEN
        self._data = b""
        """What came last."""
        self._received_at = 0.0
        """When the head began, if its end did not come with it, or when the last piece of the body came."""
        self._heads = self._head_bytes = 0
        super().connection_made(transport)
        self._look_after(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._current is not None:
            self.front.forget(self._current)
            self._current.release()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        super().connection_lost(exc)

    def expects_a_request(self, within: float) -> bool:
        """Whether one may be on its way: none has come whole yet, or the last was answered less than so long ago."""
        if self.cycle is None:
            return True
        return self._idle_since is not None and self.loop.time() - self._idle_since < within

    # -- a request comes in

    def data_received(self, data: bytes) -> None:
        begun, self._data = self._heads, data
        super().data_received(data)
        self._data = b""
        if self._place:
            self._more_is_to_come(len(data), self._heads != begun)

    def _more_is_to_come(self, length: int, begun: bool) -> None:
        """The request has not ended with what came last.

        Args:
            length: bytes that came.
            begun: whether they began a head.
        """
        if begun or self._place != IN_HEAD:
            self._received_at = self.loop.time()
        if begun or self._place == IN_BODY:
            return
        self._head_bytes += length  # the parser would collect it without end
        if self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            self.logger.warning("a request head of more than %d bytes is refused", HEAD_LIMIT_BYTES)
            self.transport.write(HEAD_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._place = IN_HEAD
        self._heads += 1
        self._head_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._receiving = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Begin an answer.

        Raises:
            BadHead: the parser hands it on as an error of its own, which is answered with 400.
        """
        self._place = IN_BODY
        if self.parser.should_upgrade() and not self._should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise heads.BadHead("this is no proxy")
            return  # the parser stops here, see `_unsupported_upgrade_warning`
        headers, version = heads.combined(self.headers), self.parser.get_http_version()
        heads.check(version, headers)
        exchange = self._short_way(headers)
        if exchange is None:
            self._asgi_way()
            return
        self.cycle = self._current = exchange  # type: ignore[assignment]
        self._receiving = True
        announced = headers.get("content-length", "0")
        expected = headers.get("expect", "").lower() == "100-continue" and version != "1.0"
        if announced.isdecimal() and int(announced) > self.app.body_bytes:
            self._large(exchange, int(announced), expected)
        elif expected:
            self.transport.write(CONTINUE)

    def _should_upgrade(self) -> bool:
        return self.parser.get_method() == b"GET" and super()._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore that a client offers HTTP/2, as Java's does; uvicorn calls this while it handles the parser's stop.

        The parser takes what follows the head for the other protocol, also where it is the request's body: it is told
        the request again without the offer.
        """
        stopped = sys.exc_info()[1]
        assert isinstance(stopped, httptools.HttpParserUpgrade)
        head = heads.without_upgrade(self.parser.get_method(), self.url, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(head + self._data[stopped.args[0] :])

    def _short_way(self, headers: dict[str, str]) -> Exchange | None:
        """An exchange, if this request may take the short way."""
        if (self.cycle is not None and not self.cycle.response_complete) or self.flow.write_paused:
            return None
        method, url = self.parser.get_method(), self.url
        if self.parser.should_upgrade():
            return None
        if (url == INVOCATIONS and method == b"POST") or (url == HEALTH and method == b"GET"):
            return Exchange(self, url.decode(), None, headers)
        if url.startswith(b"/models/") and b"%" not in url and b"?" not in url:
            path = url.decode("latin-1")
            model = self.app.invoked_model(path, method.decode())
            return Exchange(self, path, model, headers) if model else None
        return None

    def _asgi_way(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        for name, value in headers:
            super().on_header(name, value)
        self.url = url
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """After the last chunk trailers follow, which the parser collects as it does a head."""
        self._place = IN_CHUNK_HEAD
        self._heads += 1
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._place = IN_BODY
        if not self._receiving:
            super().on_body(body)
            return
        exchange = self._current
        if exchange is None:  # refused: the rest is read and dropped
            return
        exchange.add(body)
        if exchange.length > self.app.few_bytes:
            self._hold(exchange, len(body))

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and not self._should_upgrade():
            return
        self._place = BETWEEN
        if not self._receiving:
            super().on_message_complete()
            if self.cycle is not None and self.cycle.response_complete:
                self._idle_since = self.loop.time()
            return
        self._receiving = False
        exchange = self._current
        if exchange is None:  # it was answered before its body had come
            self._idle_since = self.loop.time()
            return
        if exchange.path == contract.HEALTH_PATH:
            self.answer(exchange, self.app.ping())
            return
        exchange.call = Call(exchange.request(), exchange.deliver)
        self.front.submit(exchange, exchange.model)

    def _hold(self, exchange: Exchange, came: int) -> None:
        """Take account of a body that is not small, and has grown; refuse it where there is no more memory for such."""
        if exchange.length > self.app.body_bytes:
            self._large(exchange, exchange.length)
            return
        if exchange.share is None:
            exchange.share, came = Share(self.app.waiting), exchange.length
        try:
            exchange.share.add(came)
        except Unavailable as error:
            self.answer(exchange, self.app.refused(error, exchange.model))

    def _large(self, exchange: Exchange, length: int, expected: bool = False) -> None:
        """Refuse a body that is too large; one that goes to disk takes the ASGI way from here on.

        Args:
            exchange: what has come of its body goes with it.
            length: bytes announced, or that have come.
            expected: whether the client still waits to be asked for its body.
        """
        if length > self.app.service.plan.max_request_bytes:
            exchange.keep_alive = exchange.keep_alive and not expected  # else the body that is not sent would be missed
            self.answer(exchange, self.app.refused(self.app.service.too_large(length), exchange.model))
            return
        body = exchange.request().body
        exchange.release()
        self.cycle = self._current = None  # type: ignore[assignment]
        self._receiving = False
        self._asgi_way()
        self.cycle.waiting_for_100_continue = expected
        if body:
            super().on_body(body)

    # -- its answer goes out

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Send the answer of the exchange at hand, and let the next request begin."""
        self._current = None
        if exchange.share is not None:
            exchange.release()
        if not isinstance(response.body, bytes):
            self._stream(exchange, response)
            return
        exchange.response_complete = True
        if self.transport.is_closing():
            return
        if self.app.draining:
            exchange.keep_alive = False
        try:
            self._write(self._head(response), response.body, exchange.keep_alive)
        except (ValueError, TypeError, AttributeError) as error:  # in a response that the handler made itself
            self.logger.error("an answer cannot be sent: %s", error)
            failed = HandlerFailed(f"the handler's response cannot be sent: {error}").response()
            self._write(self._head(failed), failed.body, exchange.keep_alive)  # type: ignore[arg-type]
        self.on_response_complete()

    def _write(self, head: bytes, body: bytes, keep_alive: bool) -> None:
        end = b"content-length: %d\r\n\r\n" if keep_alive else b"content-length: %d\r\nconnection: close\r\n\r\n"
        if len(body) < LARGE_BYTES:
            self.transport.write(head + end % len(body) + body)
        else:
            self.transport.write(head + end % len(body))
            self.transport.write(body)
        if not keep_alive:
            self.transport.close()

    def _head(self, response: Response) -> bytes:
        defaults = self.server_state.default_headers  # another list every second, with another date
        if Protocol._defaults[0] is not defaults:
            Protocol._defaults = defaults, b"".join(b"%b: %b\r\n" % header for header in defaults)
        content_type = response.content_type if response.body != b"" else ""
        if not response.headers:
            return status_line(response.status, content_type) + Protocol._defaults[1]
        return first_lines(response.status, content_type, response.headers) + Protocol._defaults[1]

    def _stream(self, exchange: Exchange, response: Response) -> None:
        """Send a stream the ASGI way, in the place of the exchange."""

        async def respond(scope: Any, receive: Any, send: Any) -> None:
            await self.app.send(response, receive, send)

        scope: Any = {"type": "http", "method": "POST", "http_version": "1.1", "path": exchange.path, "headers": []}
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=exchange.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        if self.cycle is exchange:  # else a pipelined request waits behind it
            self.cycle = cycle
        self._start_asgi_task(cycle, respond)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._received_at = self.loop.time()  # what is coming in could not be awaited before
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self._received_at

    # One timer lives as long as the connection, and is set anew when it rings: requests come far more often.

    def _look_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def handle_websocket_upgrade(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()  # what comes from here on is not ours
        super().handle_websocket_upgrade()

    def timeout_keep_alive_handler(self) -> None:
        allowed = self.timeout_keep_alive if self._place == BETWEEN else RECEIVE_SECONDS
        silent = self.silent_seconds()
        if silent < allowed:
            self._look_after(allowed - silent)
        else:
            self.give_up()

    def silent_seconds(self) -> float:
        """How long it has been the client's turn: since the last answer, the head's first bytes, or the last piece."""
        now = self.loop.time()
        if self._place == BETWEEN:
            return 0.0 if self._idle_since is None else now - self._idle_since
        if self.flow.read_paused or self._owes_an_answer():
            self._received_at = now
        return now - self._received_at

    def _owes_an_answer(self) -> bool:
        """Whether a request before the one that is coming in waits for its answer."""
        if self._place == IN_HEAD:
            return self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline)

    def give_up(self) -> None:
        """Close a connection whose client has been silent for too long, or longer than others where room is short."""
        if self._place != BETWEEN and not self._has_begun_to_answer():
            self.transport.write(TIMED_OUT)
        super().timeout_keep_alive_handler()

    def _has_begun_to_answer(self) -> bool:
        """Whether something of the answer to the request that is coming in has been sent already."""
        if self._place == IN_HEAD:
            return False
        return self._current is None if self._receiving else self.cycle.response_started


@lru_cache(maxsize=256)
def status_line(status: int, content_type: str) -> bytes:
    """The first lines of an answer without headers of its own."""
    return first_lines(status, content_type, ())


def first_lines(status: int, content_type: str, headers: tuple[tuple[str, str], ...]) -> bytes:
    """Status line and headers.

    Raises:
        ValueError: a header would break the answer's framing, or there is no such status.
    """
    if status not in STATUS_LINE:
        raise ValueError(f"status {status!r} cannot be sent")
    lines = [STATUS_LINE[status]]
    for name, value in (*headers, *([("content-type", content_type)] if content_type else [])):
        line = name.lower().encode("latin-1"), value.encode("latin-1")
        if HEADER_RE.search(line[0]) or HEADER_VALUE_RE.search(line[1]):
            raise ValueError(f"response header {name!r} cannot be sent: {value!r}")
        lines.append(b"%b: %b\r\n" % line)
    return b"".join(lines)

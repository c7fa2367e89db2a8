"""What a user's function returned as an answer: its headers checked, its pieces one after another."""

import functools
import logging
import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from container.serve import codec, tracing
from container.serve.call import Call
from container.serve.exchange import HandlerFailed, Response, ServeError
from container.serve.failures import describe_request

logger = logging.getLogger(__name__)

HEADER_LIMIT = 1024  # of a response header that SageMaker passes on
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding", "connection"})  # the server's own business
END = object()


def answer(result: Any, kind: str, call: Call, session_headers: Mapping[str, str]) -> Response:
    """The answer of what a handler returned, of that media type.

    Raises:
        HandlerFailed: a header may not be sent, or the result cannot be written.
    """
    headers = {**call.context.response_headers, **session_headers} if call.context else {}
    for name in [name for name in headers if name.lower() == "content-type"]:
        kind = headers.pop(name)
    if headers:
        check_headers({**headers, "Content-Type": kind})
    else:
        check_content_type(kind)
    extra = tuple(headers.items())
    status = check_status(call.context.response_status) if call.context else 200
    if isinstance(result, Iterator):
        pieces = _pieces(result, call.request.headers)
        return Response(status, _stream(pieces, call) if wants_stream(call) else b"".join(pieces), kind, extra)
    return Response(status, codec.to_bytes(result), kind, extra)


def check_status(status: int) -> int:
    """Refuse a status that is none of an answer with a body.

    Raises:
        HandlerFailed: it is not.
    """
    if status == 200 or (isinstance(status, int) and 200 <= status < 600 and status not in (204, 205, 304)):
        return status
    raise HandlerFailed(f"a handler set the response status {status!r}; 200 to 599 can be answered")


def _stream(pieces: Iterator[bytes], call: Call) -> Iterator[bytes]:
    """The pieces of an answer whose status is on its way already: the log alone can say why it breaks off."""
    try:
        yield from pieces
    except Exception as error:
        with tracing.working_on(call.request.headers):
            logger.error("the answer broke off: %s", describe_request(error))
        raise


def _pieces(result: Iterator[Any], headers: Mapping[str, str]) -> Iterator[bytes]:
    """The handler's pieces as bytes; each is made on whichever thread asks for it, for the request of `headers`."""
    try:
        while True:
            with tracing.working_on(headers):
                piece = next(result, END)
            if piece is END:
                return
            yield codec.to_bytes(piece)
    finally:
        if isinstance(result, Generator):  # closed early: the client has gone
            result.close()


@functools.lru_cache(maxsize=256)
def check_content_type(kind: str) -> None:
    """As `check_headers`, of an answer that has no other header."""
    check_headers({"Content-Type": kind})


def check_headers(headers: Mapping[str, str]) -> None:
    """Refuse response headers that would break the answer's framing or that SageMaker would not pass on.

    Raises:
        HandlerFailed: a name or value is not allowed.
    """
    for name, value in headers.items():
        if not HEADER_NAME.fullmatch(name) or name.lower() in FRAMING_HEADERS:
            raise HandlerFailed(f"a handler set the response header {name!r}, which it may not")
        if not isinstance(value, str) or len(value) > HEADER_LIMIT or not value.isascii() or not value.isprintable():
            raise HandlerFailed(f"response header {name} must be printable ASCII of at most {HEADER_LIMIT} characters")


def wants_stream(call: Call) -> bool:
    """Whether this request asked for a stream: by its handler, by Accept, or by `"stream": true` in a JSON body."""
    if call.context and call.context.stream:
        return True
    if codec.preferences(call.request.headers.get("accept"))[:1] == ["text/event-stream"]:
        return True
    headers, body = call.request.headers, call.request.body
    if codec.media_type(headers.get("content-type")) != codec.JSON or b'"stream"' not in body:
        return False
    try:
        value = codec.decode_json(body)
    except ServeError:
        return False
    return isinstance(value, dict) and value.get("stream") is True

"""What goes into the serving core and what comes out of it: plain values, whichever door they came through.

bytes -> Request -> (decode, predict, encode) -> Response -> bytes
                        `-> ServeError, one class per answer the caller can act on
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

ERROR_BODY_LIMIT = 2048  # OriginalMessage of a ModelError holds no more characters


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, read completely."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Names in lower case."""
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer. A body that is an iterator is a stream: sent piece by piece, without a Content-Length."""

    status: int
    body: bytes | Iterator[bytes] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class ServeError(Exception):
    """A request that is answered with an error status; the message goes to the caller."""

    status = 500

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details

    def response(self, headers: tuple[tuple[str, str], ...] = ()) -> Response:
        """The error as JSON, at most `ERROR_BODY_LIMIT` characters."""
        return json_response(self.status, {"error": str(self)[: ERROR_BODY_LIMIT // 4], **self.details}, headers)


class BadRequest(ServeError):
    """The body cannot be read or does not fit the model: change the body."""

    status = 400


class NotFound(ServeError):
    """No such route or model."""

    status = 404


class MethodNotAllowed(ServeError):
    """The route exists, the method does not."""

    status = 405


class NotAcceptable(ServeError):
    """None of the formats in Accept can be written."""

    status = 406


class Conflict(ServeError):
    """A model of that name is there already."""

    status = 409


class BodyTooLarge(ServeError):
    """The body is over the server's limit."""

    status = 413


class UnsupportedMediaType(ServeError):
    """No decoder for this Content-Type."""

    status = 415


class HandlerFailed(ServeError):
    """The user's function or the network raised; the log has the trace under the id."""

    status = 500


class Unavailable(ServeError):
    """The server cannot take the request now: try again."""

    status = 503

    def response(self, headers: tuple[tuple[str, str], ...] = ()) -> Response:
        return super().response((("Retry-After", "1"), *headers))


class DeadlineExceeded(ServeError):
    """The request waited or computed longer than the server's deadline."""

    status = 504


class OutOfMemory(ServeError):
    """Memory ran out in a load or an invocation: the platform unloads other models and tries again."""

    status = 507


def json_response(status: int, value: Any, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    """`value` as a JSON answer."""
    return Response(status, orjson.dumps(value), headers=headers)

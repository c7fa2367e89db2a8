"""A small HTTP client whose every failure says what the platform's proxy would have seen."""

import http.client
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from container.contract import HEALTH_PATH, PING_TIMEOUT_SECONDS
from launcher.check.target import CheckFailed

Address = tuple[str, int]
INVOKE_SECONDS = 60  # what a real-time endpoint gives a container


class NoAnswer(CheckFailed):
    """The connection was refused, reset or closed, or the answer took too long."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    seconds: float

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        text = self.body[:120].decode("utf-8", "replace")
        return f"{self.status} {text!r}" if text else str(self.status)


@dataclass(frozen=True)
class Request:
    """A request's body and its types."""

    body: bytes
    content_type: str
    accept: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.content_type} | ({"Accept": self.accept} if self.accept else {})


def send(
    address: Address,
    method: str,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = INVOKE_SECONDS,
) -> Answer:
    """One request on a connection of its own; an iterable body is sent chunked.

    Raises:
        NoAnswer: there is none.
    """
    connection = http.client.HTTPConnection(*address, timeout=seconds)
    started = time.monotonic()
    try:
        chunked = body is not None and not isinstance(body, bytes)
        connection.request(method, path, body, dict(headers or {}), encode_chunked=chunked)
        return _answer(connection.getresponse(), started)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(_no_answer(f"{method} {path}", error)) from error
    finally:
        connection.close()


def send_raw(address: Address, head: str, body: bytes = b"", seconds: float = INVOKE_SECONDS) -> Answer:
    """Send a request head as it stands; `http.client` would add a Host.

    Raises:
        NoAnswer: there is no answer.
    """
    started = time.monotonic()
    try:
        with socket.create_connection(address, seconds) as connection:
            connection.sendall(head.encode("ascii") + body)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return _answer(response, started)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(_no_answer(head.partition(" HTTP")[0], error)) from error


def ping(address: Address, method: str = "GET") -> Answer:
    """`/ping` within the two seconds that the platform allows.

    Raises:
        NoAnswer: there is no answer.
    """
    return send(address, method, HEALTH_PATH, seconds=PING_TIMEOUT_SECONDS)


def connect_seconds(address: Address, limit: float) -> float:
    """How long a TCP connect takes.

    Raises:
        NoAnswer: it is refused, or takes longer than the limit.
    """
    started = time.monotonic()
    try:
        socket.create_connection(address, limit).close()
    except OSError as error:
        raise NoAnswer(_no_answer("TCP connect", error)) from error
    return time.monotonic() - started


def is_reachable(host: str, port: int) -> bool:
    """Whether packets get there: a refused connection shows it as well as an accepted one."""
    try:
        socket.create_connection((host, port), 1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def _answer(response: http.client.HTTPResponse, started: float) -> Answer:
    body = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, body, time.monotonic() - started)


def _no_answer(what: str, error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"{what} got no answer in time"
    return f"{what} got no answer: {type(error).__name__} {error}".rstrip()

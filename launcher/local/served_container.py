"""One container of a model, and the HTTP connections to it."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import urllib3
import urllib3.exceptions

from container import contract
from launcher.local.containers import Container
from launcher.local.logs import LogStream

POOL_SIZE = 64
PART_BYTES = 65536
ERROR_LINE = re.compile(r"error|exception|failed|cannot|traceback", re.IGNORECASE)


class InvocationTimeout(Exception):
    """The container did not answer within the limit."""


class InvocationBroken(Exception):
    """The container closed the connection, or does not listen."""


@dataclass(frozen=True)
class Reply:
    """What a container answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "application/octet-stream")


@dataclass(frozen=True)
class StreamedReply:
    """What a container answers bit by bit; `parts` raises InvocationBroken or InvocationTimeout in the middle."""

    status: int
    headers: Mapping[str, str]
    parts: Iterator[bytes]


class ServedContainer:
    """One container of a model and the connections to it."""

    def __init__(self, container: Container, hostname: str, stream: LogStream) -> None:
        self.container = container
        self.hostname = hostname
        self.log = stream
        self._pool = urllib3.HTTPConnectionPool(*container.address, maxsize=POOL_SIZE, block=False)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Reply:
        """One request over a kept connection.

        Raises:
            InvocationTimeout: no whole answer within `timeout` seconds.
            InvocationBroken: no connection, or it broke.
        """
        with self._errors(timeout):
            answer = self._open(method, path, body, headers, timeout, preload_content=True)
            return Reply(answer.status, answer.headers, answer.data)

    def stream(self, path: str, body: bytes, headers: Mapping[str, str], timeout: float) -> StreamedReply:
        """A POST whose answer is handed on as it comes.

        Raises:
            InvocationTimeout: nothing came for `timeout` seconds.
            InvocationBroken: no connection, or it broke.
        """
        with self._errors(timeout):
            answer = self._open("POST", path, body, headers, timeout, preload_content=False)
        return StreamedReply(answer.status, answer.headers, self._parts(answer, timeout))

    def _parts(self, answer: urllib3.BaseHTTPResponse, timeout: float) -> Iterator[bytes]:
        try:
            with self._errors(timeout):
                while part := answer.read1(PART_BYTES):
                    yield part
            answer.release_conn()
        finally:
            answer.close()

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        *,
        preload_content: bool,
    ) -> urllib3.BaseHTTPResponse:
        sent = {"User-Agent": "AHC/2.0", "Accept-Encoding": urllib3.util.SKIP_HEADER, **(headers or {})}
        return self._pool.urlopen(
            method,
            path,
            body=body,
            headers=sent,
            retries=False,
            redirect=False,
            timeout=timeout,
            decode_content=False,
            preload_content=preload_content,
        )

    @contextlib.contextmanager
    def _errors(self, timeout: float) -> Iterator[None]:
        try:
            yield
        except urllib3.exceptions.NewConnectionError as error:
            raise InvocationBroken(f"nothing listens on port {self.container.address[1]}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise InvocationTimeout(f"no answer within {timeout:.3g} s") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise InvocationBroken(f"the connection broke: {error}") from error

    def is_healthy(self) -> bool:
        """One ping: 200 within its two seconds."""
        try:
            return self.request("GET", contract.HEALTH_PATH, timeout=contract.PING_TIMEOUT_SECONDS).status == 200
        except (InvocationTimeout, InvocationBroken):
            return False

    def last_error_line(self) -> str:
        """The line of its log that most likely says why it does not serve."""
        lines = list(self.container.last_lines)
        return next((line for line in reversed(lines) if ERROR_LINE.search(line)), lines[-1] if lines else "")

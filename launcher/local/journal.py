"""What moto keeps in memory alone - repositories, roles, alarms, scaling policies, settings of buckets - survives here.

Moto can save nothing but its requests; so each request that changed something is written down, and sent again to the
next server's moto. Its random numbers are seeded before a request, then as now: identifiers come out the same. Times of
creation do not: they are those of the restart.
"""

import base64
import io
import json
import logging
import re
import secrets
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from moto.moto_api._internal import mock_random

logger = logging.getLogger(__name__)

READING = re.compile(r"Describe|List|Get|BatchGet|BatchCheck|Search|Simulate|Head|Lookup")
NOT_KEPT = frozenset({"logs", "sts"})  # lines lie in files of their own; sessions end with the server
DATA = frozenset({"PutMetricData", "BatchPutMetrics"})  # points: many, and each matters little
MOST_REQUESTS = 5000  # replayed in about ten seconds
MOST_DATA = 500
KEPT_HEADERS = ("CONTENT_TYPE", "HTTP_X_AMZ_TARGET", "HTTP_SMITHY_PROTOCOL", "HTTP_ACCEPT")
REGION = re.compile(r"Credential=[^/,]+/\d+/([^/,]+)/")
Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


@dataclass(frozen=True)
class Entry:
    """One request, as a WSGI environment can be made of it; who signed it and how is left out."""

    service: str
    region: str
    operation: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: str
    """In base64."""
    seed: int

    def environ(self, host: str) -> Environ:
        """The request again."""
        body = base64.b64decode(self.body)
        scope = f"local/20200101/{self.region}/{self.service}/aws4_request"
        raw = self.path + (f"?{self.query}" if self.query else "")
        return {
            "REQUEST_METHOD": self.method,
            "PATH_INFO": self.path,
            "QUERY_STRING": self.query,
            "REQUEST_URI": raw,
            "RAW_URI": raw,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": host,
            "HTTP_AUTHORIZATION": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.url_scheme": "http",
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **self.headers,
        }


class Journal:
    """The requests that changed moto's state, in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._entries: list[Entry] = []

    def answer(self, application: Application, environ: Environ, service: str, start_response: Any) -> list[bytes]:
        """Let moto answer; keep the request if it changed something."""
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        operation = operation_of(environ, body)
        if service in NOT_KEPT or READING.match(operation):
            return list(application(environ, start_response))
        seed = secrets.randbits(32)
        mock_random.seed(seed)
        statuses: list[str] = []

        def keep_status(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            statuses.append(status)
            return start_response(status, headers, *rest)

        entry = Entry(
            service,
            region_of(environ),
            operation,
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            {name: environ[name] for name in KEPT_HEADERS if name in environ},
            base64.b64encode(body).decode(),
            seed,
        )
        answer = list(application(environ, keep_status))
        if statuses and statuses[0].startswith("2"):
            self._add(entry)
        return answer

    def replay(self, application: Application, host: str) -> None:
        """Send an earlier server's requests to this one's moto; the last line of a killed server may be cut."""
        if not self._path.is_file():
            return
        lines = self._path.read_text("utf-8").splitlines()
        for line in lines:
            try:
                entry = Entry(**json.loads(line))
                mock_random.seed(entry.seed)
                list(application(entry.environ(host), lambda *_: None))
            except Exception:  # one request that moto cannot take any more keeps none of the others
                logger.exception("%s: %s", self._path, line[:200])
            else:
                self._entries.append(entry)
        mock_random.seed()
        if len(self._entries) < len(lines):  # else the next line would be appended to half of one
            self._write()

    def forget_bucket(self, bucket: str) -> None:
        """Drop the settings of a bucket that is deleted; one of the same name begins without them."""
        with self._lock:
            kept = [entry for entry in self._entries if entry.service != "s3" or bucket_of(entry.path) != bucket]
            if len(kept) < len(self._entries):
                self._entries = kept
                self._write()

    def _add(self, entry: Entry) -> None:
        with self._lock:
            self._entries.append(entry)
            data = [item for item in self._entries if item.operation in DATA]
            if len(data) <= MOST_DATA and len(self._entries) <= MOST_REQUESTS:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(entry)) + "\n")
                return
            outdated = set(map(id, data[: -MOST_DATA // 2]))
            kept = [item for item in self._entries if id(item) not in outdated]
            if len(kept) > MOST_REQUESTS:
                logger.warning("%s holds %d requests; the oldest are forgotten", self._path, len(kept))
                kept = kept[-MOST_REQUESTS * 9 // 10 :]
            self._entries = kept
            self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in self._entries), "utf-8")
        temporary.replace(self._path)


def operation_of(environ: Environ, body: bytes) -> str:
    """Name of the operation in any of AWS's protocols; of REST, the method stands for it, reading ones as `Get`."""
    target = environ.get("HTTP_X_AMZ_TARGET", "")
    if target:
        return str(target).rpartition(".")[2]
    path: str = environ["PATH_INFO"]
    if "/operation/" in path or path.endswith("/BatchPutMetrics"):
        return path.rpartition("/")[2]
    form = body.decode("latin-1") if "urlencoded" in environ.get("CONTENT_TYPE", "") else ""
    action = parse_qs(form).get("Action") or parse_qs(environ.get("QUERY_STRING", "")).get("Action")
    if action:
        return action[0]
    return "Get" if environ["REQUEST_METHOD"] in ("GET", "HEAD", "OPTIONS") else str(environ["REQUEST_METHOD"])


def region_of(environ: Environ) -> str:
    """Region of the request's credential scope."""
    match = REGION.search(environ.get("HTTP_AUTHORIZATION", ""))
    return match[1] if match else "us-east-1"


def bucket_of(path: str) -> str:
    """The first part of an S3 request's path."""
    return path.removeprefix("/").partition("/")[0]

"""One WSGI application for every AWS service: who is meant, and who answers.

The service stands in the credential scope of the Authorization header, as every signed request carries it. SageMaker
and its runtime are ours; moto answers for the others; what is written to S3 is mirrored to files.
"""

import io
import json
import logging
import re
import threading
import xml.etree.ElementTree
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast
from urllib.parse import parse_qs
from uuid import uuid4

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.datastructures import EnvironHeaders
from werkzeug.http import HTTP_STATUS_CODES

from launcher.local import page
from launcher.local.admin import Admin
from launcher.local.buckets import Buckets
from launcher.local.errors import InternalFailure, ServiceError
from launcher.local.journal import Journal
from launcher.local.runtime_api import RuntimeApi, runtime_operation
from launcher.local.sagemaker_api import TARGET_PREFIX, SageMakerApi

logger = logging.getLogger(__name__)
Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
SCOPE = re.compile(r"Credential=[^/,]+/\d+/[^/,]+/([^/,]+)/aws4_request")
PRESIGNED_SCOPE = re.compile(r"X-Amz-Credential=[^&]+?%2F\d+%2F[^&]+?%2F([^&]+?)%2Faws4_request")
UNSIGNED_INVOCATION = re.compile(r"POST /endpoints/[^/]+/(async-)?invocations(-response-stream)?")
JSON_TYPE = "application/x-amz-json-1.1"
READ_METHODS = ("GET", "HEAD", "OPTIONS")
ADMIN_PREFIX = "/_local/"
# S3's settings of buckets and objects: query words of requests that change no object's bytes
SETTINGS = frozenset(
    ("accelerate", "acl", "cors", "encryption", "lifecycle", "logging", "notification", "object-lock")
    + ("ownershipControls", "policy", "publicAccessBlock", "replication", "tagging", "versioning", "website")
)


class Gateway:
    """The WSGI application of the server."""

    def __init__(
        self,
        sagemaker: SageMakerApi,
        runtime: RuntimeApi,
        buckets: Buckets,
        admin: Admin,
        journal: Journal,
    ) -> None:
        self._sagemaker = sagemaker
        self._runtime = runtime
        self._buckets = buckets
        self._admin = admin
        self._faults = admin.faults
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._moto_lock = threading.RLock()
        self._journal = journal

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        environ["RAW_URI"] = environ["REQUEST_URI"]  # where moto looks for S3 keys; else it unquotes twice
        service = signed_service(environ)
        if path.startswith(ADMIN_PREFIX):
            return self._answer_admin(environ, start_response)
        if path == "/" and "text/html" in environ.get("HTTP_ACCEPT", ""):
            return _respond(start_response, 200, page.html(), "text/html; charset=utf-8")
        if environ.get("HTTP_X_AMZ_TARGET", "").startswith(TARGET_PREFIX):
            return self._answer_sagemaker(environ, start_response)
        if service == "sagemaker" and not path.endswith("/BatchPutMetrics"):
            return self._answer_runtime(environ, start_response)
        if service == "s3":
            return self._answer_s3(environ, start_response)
        with self._moto_lock:
            return self._journal.answer(self._moto, environ, service, start_response)

    def restore(self) -> None:
        """Bring moto's state back to what it was when an earlier server ended."""
        with self._moto_lock:
            self._journal.replay(self._moto, "127.0.0.1")

    # --- ours -------------------------------------------------------------------------------------------------------

    def _answer_admin(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["REQUEST_URI"].partition("?")[0]
        try:
            headers, body = request_headers(environ), read_body(environ)
            answer = self._admin.answer(method, path.removeprefix(ADMIN_PREFIX), headers, body)
        except ServiceError as error:
            return _respond_error(start_response, error, "application/json")
        return _respond_json(start_response, 200, answer, "application/json")

    def _answer_sagemaker(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        operation = environ["HTTP_X_AMZ_TARGET"].removeprefix(TARGET_PREFIX)
        try:
            self._faults.check(operation)
            answer = self._sagemaker.answer(operation, read_body(environ))
        except ServiceError as error:
            return _respond_error(start_response, error, JSON_TYPE)
        except Exception as error:
            logger.exception("%s", operation)
            failure = InternalFailure(f"{operation}: {type(error).__name__}: {error}; the trace is in the server's log")
            return _respond_error(start_response, failure, JSON_TYPE)
        return _respond_json(start_response, 200, answer, JSON_TYPE)

    def _answer_runtime(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            method, path = environ["REQUEST_METHOD"], environ["REQUEST_URI"].partition("?")[0]
            self._faults.check(runtime_operation(path))
            reply = self._runtime.answer(method, path, request_headers(environ), read_body(environ))
        except ServiceError as error:
            return _respond_error(start_response, error, "application/json")
        except Exception as error:
            logger.exception("%s", environ["PATH_INFO"])
            failure = InternalFailure(f"{type(error).__name__}: {error}; the trace is in the server's log")
            return _respond_error(start_response, failure, "application/json")
        start_response(reply.status, [*reply.headers, _request_id()])
        return reply.body

    # --- moto's -----------------------------------------------------------------------------------------------------

    def _answer_s3(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Let moto answer, then make the files equal to what it holds now."""
        if environ["REQUEST_METHOD"] in READ_METHODS:
            with self._buckets.lock:
                return list(self._moto(environ, start_response))
        bucket, key = _bucket_and_key(environ)
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        deleted = _deleted_keys(environ) if "delete" in query else []
        statuses: list[str] = []

        def keep_status(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            statuses.append(status)
            return start_response(status, headers, *rest)

        with self._buckets.lock:
            if SETTINGS.intersection(query):
                return self._journal.answer(self._moto, environ, "s3", start_response)
            answer = list(self._moto(environ, keep_status))
            if statuses and statuses[0].startswith("2"):
                is_part = "partNumber" in query or "uploads" in query
                self._mirror(bucket, [key] if key and not is_part else deleted)
                if not key and environ["REQUEST_METHOD"] == "DELETE":
                    self._journal.forget_bucket(bucket)
        return answer

    def _mirror(self, bucket: str, keys: list[str]) -> None:
        self._buckets.mirror_bucket(bucket)
        for key in keys:
            self._buckets.mirror_object(bucket, key)


def signed_service(environ: Environ) -> str:
    """The service of a request's credential scope; unsigned requests are S3's, and curl's invocations."""
    match = SCOPE.search(environ.get("HTTP_AUTHORIZATION", "")) or PRESIGNED_SCOPE.search(
        environ.get("QUERY_STRING", "")
    )
    if match:
        return match[1]
    if UNSIGNED_INVOCATION.fullmatch(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"):
        return "sagemaker"
    return "" if environ.get("HTTP_X_AMZ_TARGET") or environ.get("HTTP_AUTHORIZATION") else "s3"


def request_headers(environ: Environ) -> Mapping[str, str]:
    """The request's headers, found under their names in any case."""
    headers: Any = EnvironHeaders(environ)  # has `get` and `[]`, but is not registered as a Mapping
    return cast(Mapping[str, str], headers)


def read_body(environ: Environ) -> bytes:
    """The whole request body."""
    stream: Any = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH")
    return bytes(stream.read(int(length)) if length else stream.read())


def _bucket_and_key(environ: Environ) -> tuple[str, str]:
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    bucket, _, key = path.removeprefix("/").partition("/")
    return bucket, key


def _deleted_keys(environ: Environ) -> list[str]:
    """The keys of a DeleteObjects request; its body is put back for moto."""
    body = read_body(environ)
    environ["wsgi.input"] = io.BytesIO(body)
    try:
        return [element.text or "" for element in xml.etree.ElementTree.fromstring(body).iterfind(".//{*}Key")]
    except xml.etree.ElementTree.ParseError:
        return []


def _respond_json(start_response: StartResponse, status: int, answer: object, content_type: str) -> list[bytes]:
    return _respond(start_response, status, json.dumps(answer).encode(), content_type)


def _respond(start_response: StartResponse, status: int, body: bytes, content_type: str) -> list[bytes]:
    headers = [("Content-Type", content_type), ("Content-Length", str(len(body))), _request_id()]
    start_response(f"{status} {HTTP_STATUS_CODES.get(status, 'Error')}", headers)
    return [body]


def _respond_error(start_response: StartResponse, error: ServiceError, content_type: str) -> list[bytes]:
    body = json.dumps(
        {"__type": error.code, "message": error.message, "Message": error.message, **error.members}
    ).encode()
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("x-amzn-ErrorType", error.code),
        _request_id(),
    ]
    start_response(f"{error.status} {HTTP_STATUS_CODES.get(error.status, 'Error')}", headers)
    return [body]


def _request_id() -> tuple[str, str]:
    return "x-amzn-RequestId", str(uuid4())

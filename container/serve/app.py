"""The Flask app: every route of the server over the core. It is the definition, and runs under any WSGI server."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import flask
from werkzeug.exceptions import HTTPException
from werkzeug.routing import PathConverter

from container import contract
from container.serve import tracing
from container.serve.exchange import MethodNotAllowed, NotFound, Request, Response, ServeError, json_response
from container.serve.metrics import (
    INVOKE_MODEL_ROUTE,
    METRICS_ROUTE,
    MODEL_ROUTE,
    OPENAPI_ROUTE,
    OTHER_ROUTE,
    PAGE_ROUTE,
    ROUTES,
    Metrics,
)
from container.serve.registry import Registry
from container.serve.service import Service
from container.serve.spool import SPOOL_BYTES, WRITE_BYTES, Spool

MODEL_BYTES = 65536  # a name and a directory
READ_METHODS = ("GET", "POST")
PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
RULES = {"/models/<name:name>": MODEL_ROUTE, "/models/<name:name>/invoke": INVOKE_MODEL_ROUTE}


class ModelName(PathConverter):
    """Whatever a caller calls a model: with slashes at either end, and line feeds."""

    regex = "(?s:.+?)"
    part_isolating = False  # it matches across slashes


def create_app(service: Service) -> flask.Flask:
    """All routes over `service`."""
    app = flask.Flask("slipway", static_folder=None)
    app.url_map.merge_slashes = False  # a model's name may hold any characters
    app.url_map.converters["name"] = ModelName

    @app.route(contract.HEALTH_PATH, methods=READ_METHODS)
    def ping() -> flask.Response:
        return answer(service.ping())

    @app.post(contract.INVOCATIONS_PATH)
    def invocations() -> flask.Response:
        length = flask.request.content_length or 0
        if length > service.plan.max_request_bytes:
            raise service.too_large(length)
        return invoke(service, None)

    @app.get(contract.EXECUTION_PARAMETERS_PATH)
    def execution_parameters() -> flask.Response:
        return answer(service.execution_parameters())

    if service.registry is not None:
        add_model_routes(app, service, service.registry)

    add_document(app, service)
    if service.metrics is not None:
        add_metrics(app, service, service.metrics)
    add_traces(app)
    add_error_answers(app)
    return app


def invoke(service: Service, model: str | None) -> flask.Response:
    """The core's answer to the request at hand; the core counts it."""
    body = read_body(flask.request.stream, service)
    flask.g.counted = True
    if isinstance(body, bytes):
        return answer(service.invoke(read(flask.request, body), model))
    try:
        return answer(service.invoke(read(flask.request, b""), model, body))
    finally:
        body.close()  # where nobody has read it


def add_document(app: flask.Flask, service: Service) -> None:
    """`GET /openapi.json`, and `GET /` if wanted: one file, which loads nothing from elsewhere, to try the model."""

    @app.get(OPENAPI_ROUTE)
    def document() -> flask.Response:
        from container.serve.openapi import openapi  # numpy: after the socket answers

        return answer(openapi(service))

    if not service.plan.page:
        return

    @app.get(PAGE_ROUTE)
    def page() -> flask.Response:
        headers = (("Content-Security-Policy", PAGE_POLICY), ("X-Content-Type-Options", "nosniff"))
        return answer(Response(200, PAGE.read_bytes(), "text/html; charset=utf-8", headers))


def add_metrics(app: flask.Flask, service: Service, metrics: Metrics) -> None:
    """`GET /metrics`, and a count of every answer that the core has not counted itself."""

    @app.get(METRICS_ROUTE)
    def figures() -> flask.Response:
        from container.serve.exposition import exposition  # prometheus_client: for those who ask

        return answer(exposition(service, metrics))

    @app.after_request
    def count(response: flask.Response) -> flask.Response:
        if "counted" not in flask.g:
            rule = flask.request.url_rule.rule if flask.request.url_rule else OTHER_ROUTE
            route = RULES.get(rule, rule)
            metrics.count(route if route in ROUTES else OTHER_ROUTE, response.status_code)
        return response


def add_traces(app: flask.Flask) -> None:
    """What a management route logs is about its request, too."""

    @app.before_request
    def enter() -> None:
        tracing.enter({name.lower(): value for name, value in flask.request.headers.items()})

    @app.teardown_request
    def leave(_error: BaseException | None) -> None:
        tracing.enter(None)


def add_error_answers(app: flask.Flask) -> None:
    """Errors as JSON, Flask's own (no such route, no such method) included."""

    @app.errorhandler(ServeError)
    def refused(error: ServeError) -> flask.Response:
        return answer(error.response())

    @app.errorhandler(HTTPException)
    def no_route(error: HTTPException) -> flask.Response:
        if error.code == 404:
            return answer(NotFound(f"nothing is served at {flask.request.path[:200]!r}").response())
        if error.code == 405:
            allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
            message = f"{flask.request.method} is not served at {flask.request.path[:200]!r}"
            return answer(MethodNotAllowed(message).response((("Allow", allowed),)))
        return answer(json_response(error.code or 500, {"error": error.description}))

    @app.errorhandler(Exception)
    def failed(error: Exception) -> flask.Response:
        app.logger.error("%s %s failed", flask.request.method, flask.request.path[:200], exc_info=error)
        return answer(ServeError("the server failed; the log has the reason").response())


def add_model_routes(app: flask.Flask, service: Service, registry: Registry) -> None:
    """The routes of a multi-model endpoint. A name is one opaque thing, slashes in it included."""

    @app.post("/models")
    def load() -> flask.Response:
        flask.request.max_content_length = MODEL_BYTES
        return answer(registry.load(read(flask.request, flask.request.get_data(cache=False))))

    @app.get("/models")
    def names() -> flask.Response:
        return answer(registry.names(flask.request.args.get("limit"), flask.request.args.get("next_page_token")))

    @app.get("/models/<name:name>")
    def describe(name: str) -> flask.Response:
        return answer(registry.describe(name))

    @app.delete("/models/<name:name>")
    def unload(name: str) -> flask.Response:
        return answer(registry.unload(name))

    @app.post("/models/<name:name>/invoke")
    def invoke_model(name: str) -> flask.Response:
        return invoke(service, name)


def read(request: flask.Request, body: bytes) -> Request:
    """The request as the core's value."""
    headers = {name.lower(): value for name, value in request.headers.items()}
    return Request(request.method, request.path, headers, body, request.args)


def read_body(stream: IO[bytes], service: Service) -> bytes | Spool:
    """An invocation's body to its end; from `SPOOL_BYTES` on in a file.

    Raises:
        BodyTooLarge: it is over the server's limit.
        Unavailable: it cannot be kept on disk.
    """
    limit = service.plan.max_request_bytes
    pieces = io.BytesIO()
    while pieces.tell() <= min(limit, SPOOL_BYTES):
        if not (piece := stream.read(WRITE_BYTES)):
            return pieces.getvalue()
        pieces.write(piece)
    if pieces.tell() > limit:
        raise service.too_large(pieces.tell())
    spool = Spool()
    try:
        piece = pieces.getvalue()
        while piece:
            spool.write(piece)
            if spool.length > limit:
                raise service.too_large(spool.length)
            piece = stream.read(WRITE_BYTES)
    except BaseException:
        spool.close()
        raise
    return spool


def answer(response: Response) -> flask.Response:
    """The core's value as Flask's."""
    body: bytes | Iterable[bytes] = response.body
    result = flask.Response(body, response.status)
    del result.headers["Content-Type"]
    if body != b"":
        result.headers["Content-Type"] = response.content_type
    for name, value in response.headers:
        result.headers[name] = value
    return result

"""The OpenAPI 3.1 document of the very model that is served: its shapes, its classes, an example, its errors."""

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from container import contract
from container.serve.codec import CSV, JSON, JSON_LINES, NPY, RECORD_TYPES, RECORDIO
from container.serve.exchange import Response, Unavailable, json_response
from container.serve.interface import Interface
from container.serve.metrics import INVOKE_MODEL_ROUTE, METRICS_ROUTE, MODEL_ROUTE, MODELS_ROUTE, OPENAPI_ROUTE
from container.serve.predictor import Predictor
from container.serve.service import Service

EXAMPLE_VALUES = 1024  # a larger image is no example that somebody reads
READERS = ("input_fn", "transform_fn")
WRITERS = ("output_fn", "transform_fn", "predict_fn")
ERRORS = {
    400: "The body is malformed, or not what the model takes.",
    406: "Nothing that Accept names can be written.",
    413: "The body, or the image in it, is too large.",
    415: "There is no decoder for this Content-Type.",
    500: "A function of the model's raised; the log has the trace under the id.",
    503: "The model is loading, or the queue is full; Retry-After says when to try again.",
    504: "No answer within the deadline.",
}
PING = {200: {"description": "The server answers."}, 503: {"description": "What the server is waiting for."}}
HEADERS = {
    contract.CUSTOM_ATTRIBUTES_HEADER: "Handed to the handlers.",
    contract.INFERENCE_ID_HEADER: "Handed to the handlers, and in the log line of a failure.",
    "traceparent": "W3C trace context; in every log line about the request.",
}

Schema = dict[str, Any]
PIXEL: Schema = {"type": ["number", "boolean"], "minimum": 0, "maximum": 255}


def openapi(service: Service) -> Response:
    """The answer to `GET /openapi.json`.

    Raises:
        Unavailable: no model is there to describe yet.
    """
    if service.registry is not None:
        return json_response(200, document("many models", {**model_paths(), **common_paths()}))
    predictors = service.predictors()
    if not predictors:
        raise Unavailable("the model is still loading")
    interface = predictors[0].defaults.interface()
    classes = f"a classifier of {len(interface.classes)} classes" if interface.image_shape else "one model"
    paths = {contract.INVOCATIONS_PATH: {"post": invocation(predictors[0], interface)}, **common_paths()}
    paths[contract.EXECUTION_PARAMETERS_PATH] = {
        "get": _read("How batch transform should call.", {JSON: {"schema": {"type": "object"}}})
    }
    return json_response(200, document(classes, paths))


def document(title: str, paths: dict[str, Any]) -> dict[str, Any]:
    """The document around its paths."""
    return {
        "openapi": "3.1.0",
        "info": {"title": f"Slipway serves {title}", "version": "1"},
        "paths": paths,
        "components": {"schemas": {"Error": ERROR}, "responses": {str(status): _error(status) for status in ERRORS}},
    }


ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}, "id": {"type": "string"}},
}


def common_paths() -> dict[str, Any]:
    """What every server answers."""
    ping = {"summary": "Whether the server can answer.", "responses": _by_status(PING)}
    return {
        contract.HEALTH_PATH: {"get": {**ping, "operationId": "ping"}, "post": {**ping, "operationId": "postPing"}},
        METRICS_ROUTE: {"get": _read("Figures of all processes, for Prometheus.", {"text/plain": {}})},
        OPENAPI_ROUTE: {"get": _read("This document.", {JSON: {"schema": {"type": "object"}}})},
    }


def invocation(predictor: Predictor, interface: Interface) -> dict[str, Any]:
    """`POST /invocations`. Functions of the user's may read and write what only their author knows."""
    functions = set(predictor.functions.names())
    if functions:  # they may take another input than the model does
        interface = replace(interface, example=None)
    reads: dict[str, Any] = {"*/*": {}} if functions & set(READERS) else request_content(interface)
    writes: dict[str, Any] = {"*/*": {}} if functions & set(WRITERS) else answer_content(interface)
    return {
        "operationId": "invoke",
        "summary": "Ask the model.",
        "parameters": [
            {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
            for name, text in HEADERS.items()
        ],
        "requestBody": {"required": True, "content": reads},
        "responses": {"200": {"description": "The answer.", "content": writes}, **_errors(ERRORS)},
    }


def request_content(interface: Interface) -> dict[str, Any]:
    """By content type what the default decoders take."""
    binary: dict[str, Any] = {kind: {} for kind in RECORD_TYPES}
    shape = interface.image_shape
    if interface.example is not None:
        return {**array_content(interface.example), **binary}
    if shape is None:
        return {
            JSON: {"schema": {}},  # no example: only the model's author knows one that it takes
            CSV: {"schema": {"type": "string"}},
            JSON_LINES: {"schema": {"type": "string"}},
            NPY: {},
            **binary,
        }
    count = prod(shape)
    text = {"type": "string", "description": f"One image a line: {count} pixel values 0 to 255, in the order C, H, W."}
    content: dict[str, Any] = {
        "image/*": {},
        JSON: {"schema": json_request(shape)},
        CSV: {"schema": text},
        JSON_LINES: {"schema": {**text, "description": "One image a line, as in application/json."}},
        NPY: {"schema": {"description": f"An array of numbers 0 to 255, {list(shape)} or [N, {str(list(shape))[1:]}."}},
        **binary,
    }
    if count <= EXAMPLE_VALUES:
        black = reduce(lambda inner, extent: [inner] * extent, reversed(shape), 0)  # type: ignore[arg-type, return-value]
        content[JSON]["example"] = {"instances": [black]}
        content[CSV]["example"] = ",".join(["0"] * count) + "\n"
        content[JSON_LINES]["example"] = str(black).replace(" ", "") + "\n"
    return content


def array_content(example: np.ndarray) -> dict[str, Any]:
    """By content type what a program that was exported with `example` [B, …] takes."""
    number: Schema = {"type": "integer" if np.issubdtype(example.dtype, np.integer) else "number"}
    records = _nested(example.shape[1:], number)
    if example.ndim:
        records = {"type": "array", "minItems": 1, "items": records}
    instances = {"type": "object", "required": ["instances"], "properties": {"instances": records}}
    shape = f"[{', '.join(map(str, ('N', *example.shape[1:])[: example.ndim]))}]"
    text = {"type": "string", "description": f"A record a line; {example.dtype} {shape} altogether."}
    content: dict[str, Any] = {
        JSON: {"schema": {"anyOf": [instances, records]}},
        JSON_LINES: {"schema": text},
        NPY: {"schema": {"description": f"{example.dtype} {shape}."}},
    }
    small = example.size <= EXAMPLE_VALUES and np.isfinite(example).all()
    if small:
        content[JSON]["example"] = example.tolist()
    if example.ndim and small:
        content[JSON_LINES]["example"] = "".join(f"{json.dumps(row.tolist())}\n" for row in example)
    if example.ndim == 2:
        content[CSV] = {"schema": text}
        if small:
            content[CSV]["example"] = "".join(",".join(map(str, row.tolist())) + "\n" for row in example)
    return content


def json_request(shape: tuple[int, int, int]) -> Schema:
    """A record or several, bare or as `instances`."""
    images: list[Schema] = [_nested(shape), _nested((prod(shape),))]
    if shape[0] == 1:
        images.append(_nested(shape[1:]))
    image: Schema = {"anyOf": images}
    wrapped: list[Schema] = [
        {"type": "object", "required": [name], "properties": {name: image}} for name in ("instance", "features", "data")
    ]
    records = {"type": "array", "minItems": 1, "items": {"anyOf": [*images, *wrapped]}}
    instances = {"type": "object", "required": ["instances"], "properties": {"instances": records}}
    return {"anyOf": [instances, *images, {"type": "array", "minItems": 1, "items": image}]}


def _nested(shape: Iterable[int], number: Schema = PIXEL) -> Schema:
    schema = number
    for extent in reversed(tuple(shape)):
        schema = {"type": "array", "minItems": extent, "maxItems": extent, "items": schema}
    return schema


def answer_content(interface: Interface) -> dict[str, Any]:
    """By content type what the default encoders write."""
    if not interface.image_shape:
        return {JSON: {"schema": {}}, CSV: {}, JSON_LINES: {}, NPY: {}, RECORDIO: {}}
    count = len(interface.classes)
    probability = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    record = {
        "type": "object",
        "required": ["label", "score", "probabilities"],
        "properties": {
            "label": {"type": "string", "enum": list(interface.classes)},
            "score": probability,
            "probabilities": {"type": "array", "minItems": count, "maxItems": count, "items": probability},
        },
    }
    records = {"type": "array", "items": record}
    predictions = {"type": "object", "required": ["predictions"], "properties": {"predictions": records}}
    example = {"label": interface.classes[0], "score": 1.0, "probabilities": [1.0] + [0.0] * (count - 1)}
    return {
        JSON: {"schema": {"anyOf": [predictions, records]}, "example": {"predictions": [example]}},
        CSV: {"schema": {"type": "string", "description": "A line an image: label, score, probabilities."}},
        JSON_LINES: {"schema": {"type": "string", "description": "A line an image, as in application/json."}},
        NPY: {"schema": {"description": f"float32 [N, {count}]."}},
        RECORDIO: {"schema": {"description": "A record an image, whose labels are as in application/json."}},
    }


def model_paths() -> dict[str, Any]:
    """The routes of a multi-model endpoint."""
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    model = {"type": "object", "properties": {"modelName": {"type": "string"}, "modelUrl": {"type": "string"}}}
    listed = {"type": "object", "required": ["models"], "properties": {"models": {"type": "array", "items": model}}}
    load = {"type": "string"}
    body = {"type": "object", "required": ["model_name", "url"], "properties": {"model_name": load, "url": load}}
    texts = {400: "The body is malformed.", 404: "No model of that name is loaded.", 409: "It is loaded already."}
    full = {507: "Memory ran out."}

    def errors(*statuses: int) -> dict[str, Any]:
        return {str(status): _error(status, (texts | full)[status]) for status in statuses}

    query = [{"name": key, "in": "query", "schema": {"type": "string"}} for key in ("limit", "next_page_token")]
    return {
        MODELS_ROUTE: {
            "get": {**_read("The loaded models.", {JSON: {"schema": listed}}), "parameters": query},
            "post": {
                "summary": "Load a model.",
                "requestBody": {"required": True, "content": {JSON: {"schema": body}}},
                "responses": {"200": {"description": "It is loaded."}, **errors(400, 409, 507), **_errors([500])},
            },
        },
        MODEL_ROUTE: {
            "parameters": [name],
            "get": _read("One model.", {JSON: {"schema": model}}, errors(404)),
            "delete": _read("Unload it.", {JSON: {"schema": {"type": "object"}}}, errors(404)),
        },
        INVOKE_MODEL_ROUTE: {
            "parameters": [name],
            "post": {
                "summary": "Ask a model.",
                "requestBody": {"required": True, "content": {"*/*": {}}},
                "responses": {
                    "200": {"description": "The answer.", "content": {"*/*": {}}},
                    **errors(404, 507),
                    **_errors(ERRORS),
                },
            },
        },
    }


def _read(text: str, content: dict[str, Any], errors: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"summary": text, "responses": {"200": {"description": text, "content": content}, **(errors or {})}}


def _by_status(responses: dict[int, Any]) -> dict[str, Any]:
    return {str(status): response for status, response in responses.items()}


def _error(status: int, text: str | None = None) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": text or ERRORS[status], "content": {JSON: {"schema": schema}}}


def _errors(statuses: Iterable[int]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}

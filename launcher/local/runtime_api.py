"""The SageMaker runtime API: from the caller's headers to the container's and back, in its three forms."""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote
from uuid import uuid4

from container import contract
from launcher.local import async_inference, event_stream
from launcher.local.async_inference import AsyncRequest
from launcher.local.buckets import ACCOUNT, BucketError, Buckets, parse_s3_uri
from launcher.local.endpoint import Endpoint
from launcher.local.endpoints import Endpoints
from launcher.local.errors import RuntimeValidationError, UnknownOperation
from launcher.local.served_container import InvocationBroken, InvocationTimeout, Reply, StreamedReply
from launcher.local.serving import Invocation

PATH = re.compile(r"/endpoints/([^/]+)/(invocations|async-invocations|invocations-response-stream)")
OPERATIONS = {
    "invocations": "InvokeEndpoint",
    "async-invocations": "InvokeEndpointAsync",
    "invocations-response-stream": "InvokeEndpointWithResponseStream",
}
STREAM_SECONDS = 480  # "8 minutes in total"
INLINE_BYTES = 128_000  # Body of InvokeEndpointAsync
PREFIX = "X-Amzn-SageMaker-"
COMPONENT_HEADER = PREFIX + "Inference-Component"
TARGET_CONTAINER_HEADER = PREFIX + "Target-Container-Hostname"
INVOKED_VARIANT_HEADER = "x-Amzn-Invoked-Production-Variant"
REQUEST_HEADERS = (  # what reaches the container under the same name ("Custom Inference Code with Hosting Services")
    "Content-Type",
    "Accept",
    contract.CUSTOM_ATTRIBUTES_HEADER,
    contract.INFERENCE_ID_HEADER,
    contract.TARGET_MODEL_HEADER,
    contract.TARGET_VARIANT_HEADER,
    contract.SESSION_ID_HEADER,
)
RESPONSE_HEADERS = (  # what the caller gets back of the container's answer
    contract.CUSTOM_ATTRIBUTES_HEADER,
    PREFIX + "New-Session-Id",
    PREFIX + "Closed-Session-Id",
)


@dataclass(frozen=True)
class RuntimeReply:
    """What the caller gets."""

    status: str
    headers: list[tuple[str, str]]
    body: Iterable[bytes]


class RuntimeApi:
    """Invocations of the running endpoints."""

    def __init__(self, endpoints: Endpoints, buckets: Buckets) -> None:
        self._endpoints = endpoints
        self._buckets = buckets

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> RuntimeReply:
        """One call of the runtime API.

        Args:
            method: of the request.
            path: of the request, still quoted.
            headers: of the request, found in any case.
            body: of the request.

        Raises:
            ServiceError: what the client shall see.
        """
        match = PATH.fullmatch(path)
        if match is None or method != "POST":
            raise UnknownOperation(
                f"The local SageMaker runtime has no {method} {path}; it has InvokeEndpoint, InvokeEndpointAsync and "
                "InvokeEndpointWithResponseStream"
            )
        endpoint = self._endpoint(unquote(match[1]))
        if match[2] == "async-invocations":
            return self._invoke_async(endpoint, headers, body)
        check_body(body, contract.REALTIME_PAYLOAD_BYTES)
        if match[2] == "invocations":
            return self._invoke(endpoint, headers, body)
        return self._stream(endpoint, headers, body)

    def _endpoint(self, name: str) -> Endpoint:
        endpoint = self._endpoints.find(name)
        if endpoint is None:
            raise RuntimeValidationError(f"Endpoint {name} of account {ACCOUNT} not found.")
        return endpoint

    def _invoke(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> RuntimeReply:
        invocation = Invocation(
            body,
            container_headers(headers),
            contract.INVOCATION_TIMEOUT_SECONDS,
            headers.get(contract.TARGET_MODEL_HEADER, ""),
            headers.get(TARGET_CONTAINER_HEADER, ""),
            headers.get(contract.SESSION_ID_HEADER, ""),
            headers.get(COMPONENT_HEADER, ""),
        )
        reply, variant_name = endpoint.invoke(invocation, headers.get(contract.TARGET_VARIANT_HEADER))
        answered = [("Content-Type", reply.content_type), *caller_headers(reply, variant_name)]
        return RuntimeReply("200 OK", answered, [reply.body])

    def _stream(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> RuntimeReply:
        sent = container_headers(headers) | renamed({"Accept": headers.get(PREFIX + "Accept")})
        invocation = Invocation(
            body,
            sent,
            contract.INVOCATION_TIMEOUT_SECONDS,
            "",
            headers.get(TARGET_CONTAINER_HEADER, ""),
            headers.get(contract.SESSION_ID_HEADER, ""),
            headers.get(COMPONENT_HEADER, ""),
        )
        reply, variant_name = endpoint.stream(invocation, headers.get(contract.TARGET_VARIANT_HEADER))
        answered = [
            ("Content-Type", event_stream.CONTENT_TYPE),
            (PREFIX + "Content-Type", reply.headers.get("Content-Type", "application/octet-stream")),
            *caller_headers(reply, variant_name),
        ]
        return RuntimeReply("200 OK", answered, events(reply, time.monotonic() + STREAM_SECONDS))

    def _invoke_async(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> RuntimeReply:
        deployment, queue = endpoint.deployment(), endpoint.queue
        if queue is None:
            raise RuntimeValidationError(f"Endpoint {endpoint.name} is not asynchronous: use InvokeEndpoint.")
        inference_id = headers.get(contract.INFERENCE_ID_HEADER) or str(uuid4())
        output = deployment.config["AsyncInferenceConfig"]["OutputConfig"]
        request = async_request(inference_id, headers, output)
        if request.input_uri:
            self._check_input(request.input_uri)
        queue.submit(request, None if request.input_uri else checked_inline(body))
        answered = [("Content-Type", "application/json"), (PREFIX + "OutputLocation", request.output_uri)]
        if request.failure_uri:
            answered.append((PREFIX + "FailureLocation", request.failure_uri))
        return RuntimeReply("202 Accepted", answered, [json.dumps({"InferenceId": inference_id}).encode()])

    def _check_input(self, uri: str) -> None:
        try:
            bucket, key = parse_s3_uri(uri)
            is_there = key in self._buckets.keys(bucket, key)
        except BucketError:
            is_there = False
        if not is_there:
            raise RuntimeValidationError(f"Invalid input location: {uri} does not exist.")


def runtime_operation(path: str) -> str:
    """The API's name for what a path calls; "" where it calls nothing."""
    match = PATH.fullmatch(path)
    return OPERATIONS[match[2]] if match else ""


def async_request(inference_id: str, headers: Mapping[str, str], output: Mapping[str, str]) -> AsyncRequest:
    """What is queued for one InvokeEndpointAsync; `output` is the configuration's OutputConfig."""
    name = headers.get(PREFIX + "Filename") or inference_id
    folder = "/".join(
        part.strip("/") for part in (output["S3OutputPath"], headers.get(PREFIX + "S3OutputPathExtension", "")) if part
    )
    failure = output.get("S3FailurePath", "")
    named = {"Content-Type": headers.get(PREFIX + "Content-Type"), "Accept": headers.get(PREFIX + "Accept")}
    kept = (contract.CUSTOM_ATTRIBUTES_HEADER, contract.INFERENCE_ID_HEADER)
    timeout = headers.get(PREFIX + "InvocationTimeoutSeconds", async_inference.DEFAULT_TIMEOUT_SECONDS)
    time_to_live = headers.get(PREFIX + "RequestTTLSeconds", async_inference.DEFAULT_TTL_SECONDS)
    return AsyncRequest(
        inference_id=inference_id,
        input_uri=headers.get(PREFIX + "InputLocation", ""),
        headers=renamed({**named, **{name: headers.get(name) for name in kept}}),
        output_uri=f"{folder}/{name}.out",
        failure_uri=f"{failure.rstrip('/')}/{name}-error.out" if failure else "",
        timeout_seconds=float(timeout),
        expires=time.time() + float(time_to_live),
        received=time.time(),
    )


def checked_inline(body: bytes) -> bytes:
    """The inline body of an asynchronous request.

    Raises:
        RuntimeValidationError: there is none, or it is too large.
    """
    if not body:
        raise RuntimeValidationError("InvokeEndpointAsync needs InputLocation or Body.")
    check_body(body, INLINE_BYTES)
    return body


def check_body(body: bytes, limit: int) -> None:
    """Refuse a body over a limit.

    Raises:
        RuntimeValidationError: in the service's words.
    """
    if len(body) > limit:
        raise RuntimeValidationError(
            "1 validation error detected: Value at 'body' failed to satisfy constraint: "
            f"Member must have length less than or equal to {limit}"
        )


def events(reply: StreamedReply, deadline: float) -> Iterator[bytes]:
    """The parts of an answer as event-stream frames; a break in the middle ends them with an exception."""
    try:
        for part in reply.parts:
            if time.monotonic() > deadline:
                raise InvocationTimeout(f"the answer took longer than {STREAM_SECONDS} s")
            yield event_stream.payload_part(part)
    except InvocationTimeout as error:
        members = {"Message": str(error), "ErrorCode": "ModelInvocationTimeExceeded"}
        yield event_stream.exception("ModelStreamError", members)
    except InvocationBroken as error:
        yield event_stream.exception("ModelStreamError", {"Message": str(error), "ErrorCode": "StreamBroken"})


def container_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that reach the container; the platform strips all others."""
    return renamed({name: headers.get(name) for name in REQUEST_HEADERS})


def renamed(headers: Mapping[str, str | None]) -> dict[str, str]:
    """Headers that have a value."""
    return {name: value for name, value in headers.items() if value}


def caller_headers(reply: Reply | StreamedReply, variant_name: str) -> list[tuple[str, str]]:
    """The container's headers that reach the caller, and which variant answered."""
    kept = [(name, reply.headers[name]) for name in RESPONSE_HEADERS if name in reply.headers]
    return [(INVOKED_VARIANT_HEADER, variant_name), *kept]

"""The SageMaker runtime API: InvokeEndpoint, from the caller's headers to the container's and back."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from container import contract
from launcher.local.buckets import ACCOUNT
from launcher.local.endpoints import Endpoints, RuntimeValidationError, Variant
from launcher.local.errors import ServiceError
from launcher.local.serving import InvocationBroken, InvocationTimeout, Reply, ServedContainer

INVOKE_PATH = re.compile(r"/endpoints/([^/]+)/invocations")
ORIGINAL_MESSAGE_CHARACTERS = 2048  # ModelError.OriginalMessage
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
    "X-Amzn-SageMaker-New-Session-Id",
    "X-Amzn-SageMaker-Closed-Session-Id",
)
INVOKED_VARIANT_HEADER = "x-Amzn-Invoked-Production-Variant"


class ModelError(ServiceError):
    """The container answered with an error, or not at all."""

    status = 424
    code = "ModelError"


@dataclass(frozen=True)
class RuntimeReply:
    """What the caller gets."""

    headers: list[tuple[str, str]]
    body: Iterable[bytes]


class RuntimeApi:
    """Invocations of the running endpoints."""

    def __init__(self, endpoints: Endpoints, region: str) -> None:
        self._endpoints = endpoints
        self._region = region

    def invoke(self, endpoint_name: str, headers: Mapping[str, str], body: bytes) -> RuntimeReply:
        """InvokeEndpoint.

        Args:
            endpoint_name: of the request's path.
            headers: of the request, names in any case.
            body: at most 25 MB.

        Raises:
            ServiceError: ValidationError, ModelError or ServiceUnavailable, as the service gives them.
        """
        if len(body) > contract.REALTIME_PAYLOAD_BYTES:
            raise RuntimeValidationError(
                "1 validation error detected: Value at 'body' failed to satisfy constraint: Member must have length "
                f"less than or equal to {contract.REALTIME_PAYLOAD_BYTES}"
            )
        endpoint = self._endpoints.find(endpoint_name)
        if endpoint is None or not endpoint.variants:
            raise RuntimeValidationError(f"Endpoint {endpoint_name} of account {ACCOUNT} not found.")
        variant = endpoint.choose(headers.get(contract.TARGET_VARIANT_HEADER))
        reply = self._call(variant, container_headers(headers), body)
        return RuntimeReply(caller_headers(reply, variant), [reply.body])

    def _call(self, variant: Variant, headers: Mapping[str, str], body: bytes) -> Reply:
        server = variant.server
        assert server is not None
        try:
            reply, served = server.invoke(body, headers, contract.INVOCATION_TIMEOUT_SECONDS)
        except InvocationTimeout as error:
            raise self._model_error(
                server.containers[0],
                0,
                "Your invocation timed out while waiting for a response from container primary.",
            ) from error
        except InvocationBroken as error:
            raise self._model_error(
                server.containers[0], 500, f"The container broke the connection: {error}"
            ) from error
        if reply.status >= 400:
            raise self._model_error(served, reply.status, reply.body.decode("utf-8", "replace"))
        return reply

    def _model_error(self, served: ServedContainer, status: int, text: str) -> ModelError:
        kind = "client" if 400 <= status < 500 else "server"
        text = text[:ORIGINAL_MESSAGE_CHARACTERS]
        group = served.stream.group.replace("/", "$252F")
        console = f"https://{self._region}.console.aws.amazon.com/cloudwatch/home?region={self._region}"
        return ModelError(
            f'Received {kind} error ({status}) from {served.hostname} with message "{text}". '
            f"See {console}#logsV2:log-groups/log-group/{group} in account {ACCOUNT} for more information.",
            OriginalStatusCode=status,
            OriginalMessage=text,
            LogStreamArn=served.stream.arn,
        )


def container_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that reach the container; the platform strips all others."""
    return {name: headers[name] for name in REQUEST_HEADERS if headers.get(name)}


def caller_headers(reply: Reply, variant: Variant) -> list[tuple[str, str]]:
    """The headers that reach the caller."""
    kept = [(name, reply.headers[name]) for name in RESPONSE_HEADERS if name in reply.headers]
    return [("Content-Type", reply.content_type), (INVOKED_VARIANT_HEADER, variant.name), *kept]

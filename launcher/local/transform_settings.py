"""How a batch transform job cuts its input into requests: what the job, the container and the service say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from container import contract
from launcher.local.errors import JobFailed

STRATEGIES = {"MULTI_RECORD": "MultiRecord", "SINGLE_RECORD": "SingleRecord"}


@dataclass(frozen=True)
class TransformSettings:
    """How objects become requests; from the request, else the container's answer, else the service's defaults."""

    max_concurrent: int
    strategy: str
    max_payload_bytes: int


def batch_environment(request: Mapping[str, Any]) -> dict[str, str]:
    """Variables of a batch container: those of the settings only where the request has them."""
    environment = {contract.BATCH: "true"}
    if "MaxPayloadInMB" in request:
        environment[contract.MAX_PAYLOAD_IN_MB] = str(request["MaxPayloadInMB"])
    if "BatchStrategy" in request:
        spelled = {value: key for key, value in STRATEGIES.items()}
        environment[contract.BATCH_STRATEGY] = spelled[request["BatchStrategy"]]
    if request.get("MaxConcurrentTransforms"):
        environment[contract.MAX_CONCURRENT_TRANSFORMS] = str(request["MaxConcurrentTransforms"])
    return environment | request.get("Environment", {})


def transform_settings(request: Mapping[str, Any], execution_parameters: Mapping[str, Any]) -> TransformSettings:
    """Request before the container's answer before the defaults.

    Raises:
        JobFailed: the container's answer has an unknown strategy, or no whole numbers.
    """
    try:
        strategy = STRATEGIES[execution_parameters.get("BatchStrategy", "MULTI_RECORD")]
        concurrent = int(
            request.get("MaxConcurrentTransforms") or execution_parameters.get("MaxConcurrentTransforms", 1)
        )
        default_mb = execution_parameters.get("MaxPayloadInMB", contract.DEFAULT_MAX_PAYLOAD_IN_MB)
        payload_mb = int(request.get("MaxPayloadInMB", default_mb))
    except (KeyError, TypeError, ValueError) as error:
        raise JobFailed(
            f"ClientError: {contract.EXECUTION_PARAMETERS_PATH} answered {dict(execution_parameters)!r}; "
            "MaxConcurrentTransforms and MaxPayloadInMB are whole numbers, BatchStrategy MULTI_RECORD or SINGLE_RECORD"
        ) from error
    return TransformSettings(max(1, concurrent), request.get("BatchStrategy", strategy), payload_mb * 2**20)

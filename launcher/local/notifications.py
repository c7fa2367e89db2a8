"""SNS messages of asynchronous inference, in the service's form ("Check prediction results" of the Developer Guide)."""

import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from moto.backends import get_backend
from moto.core.exceptions import ServiceException

from launcher.local.buckets import ACCOUNT
from launcher.local.served_container import Reply

if TYPE_CHECKING:
    from launcher.local.async_inference import AsyncRequest, QueueHost

logger = logging.getLogger(__name__)


def notify(topic: str | None, host: "QueueHost", request: "AsyncRequest", outcome: Reply | str) -> None:
    """Tell a topic how a request ended; a topic that is not there is a line in the server's log.

    Args:
        topic: its ARN; None where none is configured.
        host: the queue's.
        request: that has ended.
        outcome: the answer, or why there is none.
    """
    if topic is None:
        return
    region = host.metrics.region
    message = json.dumps(notification(host.endpoint, region, request, outcome))
    try:
        get_backend("sns")[ACCOUNT][region].publish(message, arn=topic)
    except ServiceException as error:
        logger.warning("async request %s: topic %s: %s", request.inference_id, topic, error)


def notification(endpoint: str, region: str, request: "AsyncRequest", outcome: Reply | str) -> dict[str, Any]:
    """The message's members."""
    received = datetime.fromtimestamp(request.received, UTC).isoformat()
    parameters = {
        "contentType": request.headers.get("Content-Type", ""),
        "endpointName": endpoint,
        "inputLocation": request.input_uri,
    }
    message: dict[str, Any] = {
        "awsRegion": region,
        "eventTime": datetime.now(UTC).isoformat(),
        "receivedTime": received,
        "invocationStatus": "Completed" if isinstance(outcome, Reply) else "Failed",
        "requestParameters": parameters,
        "inferenceId": request.inference_id,
        "eventVersion": "1.0",
        "eventSource": "aws:sagemaker",
        "eventName": "InferenceResult",
    }
    if isinstance(outcome, Reply):
        response = {"contentType": outcome.content_type, "outputLocation": request.output_uri}
        return message | {"responseParameters": response}
    return message | {"failureReason": outcome, "responseParameters": {"outputLocation": request.failure_uri}}

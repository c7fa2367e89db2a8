"""The service's own errors, as the API answers them.

The code travels in `__type` of a JSON 1.1 body (SageMaker) or in `x-amzn-errortype` (runtime); the message is the
sentence a user of the real service would read.
"""

from typing import Any


class ServiceError(Exception):
    """An API error: what a client raises as `ClientError` with this code."""

    status = 400
    code = "ValidationException"

    def __init__(self, message: str, **members: Any) -> None:
        super().__init__(message)
        self.message = message
        self.members = members  # further members of the modeled error shape, such as OriginalStatusCode


class ValidationException(ServiceError):
    """The request breaks a constraint, or names something that does not exist."""


class SerializationException(ServiceError):
    """The body is no JSON, or a member has the wrong JSON type."""

    code = "SerializationException"


class UnknownOperation(ServiceError):
    """An operation that the local SageMaker does not have."""

    code = "UnknownOperationException"


class ResourceInUse(ServiceError):
    """The name is taken."""

    code = "ResourceInUse"


class ResourceNotFound(ServiceError):
    """What the shape `ResourceNotFound` is modeled for."""

    code = "ResourceNotFound"


class ResourceLimitExceeded(ServiceError):
    """A quota is used up."""

    code = "ResourceLimitExceeded"


class InternalFailure(ServiceError):
    """A defect of the local SageMaker itself; the trace is in its log."""

    status = 500
    code = "InternalFailure"


class RuntimeValidationError(ValidationException):
    """The runtime API's name for a request that breaks a constraint."""

    code = "ValidationError"


class ServiceUnavailable(ServiceError):
    """No instance can take the request now."""

    status = 503
    code = "ServiceUnavailable"


class ModelNotReady(ServiceError):
    """A multi-model endpoint still loads the target model."""

    status = 429
    code = "ModelNotReadyException"


class Throttled(ServiceError):
    """More concurrent requests than a serverless variant takes."""

    status = 429
    code = "ThrottlingException"


class ModelError(ServiceError):
    """The container answered with an error, or not at all."""

    status = 424
    code = "ModelError"


class JobFailed(Exception):
    """A job's end that is not `Completed`; the text becomes `FailureReason`."""

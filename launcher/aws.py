"""The only place that makes AWS clients and the SageMaker SDK's session.

Requests that create something in SageMaker go through the SDK's resource layer, other changes through its session's
own client. Reading and invoking use a boto3 client of the same session: importing the SDK costs five seconds of CPU,
which nobody who asks for a log should wait for. Everything else has no counterpart in the SDK.
"""

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import xform_name
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
)
from botocore.parsers import ResponseParserError

from launcher.errors import AwsRefused, ConfigError
from launcher.jobs.api import ApiCall
from launcher.validate import refuse_malformed, service_model

logger = logging.getLogger(__name__)

CREATED_BY_SDK = {
    "CreateTrainingJob": "TrainingJob",
    "CreateTransformJob": "TransformJob",
    "CreateModel": "Model",
    "CreateEndpointConfig": "EndpointConfig",
    "CreateEndpoint": "Endpoint",
}
NO_TELEMETRY = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
SDK_ENVIRONMENT = {
    "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": os.devnull,  # else files of the SDK's own may add a VPC, a role or tags
    "SAGEMAKER_USER_CONFIG_OVERRIDE": os.devnull,
    "SAGEMAKER_VALIDATE_ROLE": "false",  # else some calls ask IAM, which few callers may
}
CLIENT_CONFIG = ClientConfig(
    retries={"mode": "standard", "max_attempts": 5},
    read_timeout=70,  # a model may take 60 s to answer
    max_pool_connections=32,
)
PAGE_ENTRIES = 100  # the most that a SageMaker list gives at once
HINTS = {
    "ResourceLimitExceeded": "ask for a higher quota in Service Quotas, or take another instance type",
    "ExpiredToken": "log in again",
    "ExpiredTokenException": "log in again",
    "InvalidClientTokenId": "the access key is unknown; check the profile",
    "UnrecognizedClientException": "the access key is unknown; check the profile",
    "AccessDeniedException": "`python -m launcher iam policy` prints what the caller needs",
    "AccessDenied": "`python -m launcher iam policy` prints what the caller needs",
    "NoSuchBucket": "create the bucket or set `bucket`",
}


class Aws:
    """One region of one account, or a local SageMaker: which one, the AWS environment variables say."""

    def __init__(
        self, region: str, session: boto3.Session | None = None, client_config: ClientConfig = CLIENT_CONFIG
    ) -> None:
        self.region = region
        self.session = session or boto3.Session(region_name=region)
        self._client_config = client_config
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """A boto3 client, made once; threads may share it."""
        if service not in self._clients:
            with refusals(service):
                self._clients[service] = self.session.client(service, config=self._client_config)
        return self._clients[service]

    @property
    def flags(self) -> str:
        """What a command to copy needs to reach the same SageMaker: ` --local`, or nothing."""
        host = urlsplit(self.client("sagemaker").meta.endpoint_url).hostname
        return " --local" if host == "127.0.0.1" else ""

    def for_measuring(self, connections: int) -> "Aws":
        """The same account, with a connection for each of so many threads, and no refusal tried again unseen."""
        once = ClientConfig(retries={"mode": "standard", "total_max_attempts": 1}, max_pool_connections=connections)
        return Aws(self.region, self.session, CLIENT_CONFIG.merge(once))

    def call(self, service: str, operation: str, **request: Any) -> dict[str, Any]:
        """Send one request that only reads or invokes.

        Raises:
            AwsRefused: the service said no, or cannot be reached.
        """
        client = self.client(service)
        with refusals(operation):
            return getattr(client, xform_name(operation))(**request)

    def listed(self, operation: str, member: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Every entry of a SageMaker list; the next page is asked for when it is needed.

        Args:
            operation: such as `ListEndpoints`; it gives 10 entries where nobody asks for more.
            member: of the reply, such as `Endpoints`.
            request: filters and order.
        """
        request["MaxResults"] = PAGE_ENTRIES
        while True:
            reply = self.call("sagemaker", operation, **request)
            yield from reply[member]
            if not reply.get("NextToken"):
                return
            request["NextToken"] = reply["NextToken"]

    def send(self, call: ApiCall) -> dict[str, Any]:
        """Send one request that changes something, after checking it offline.

        Returns:
            The reply; empty for what the SDK's resource layer carries (ask with a Describe).

        Raises:
            ConfigError: the request is not what the API takes; nothing has been sent.
            AwsRefused: the service said no, or cannot be reached.
        """
        refuse_malformed(call)
        if call.service != "sagemaker":
            return self.call(call.service, call.operation, **call.request)
        if call.operation in CREATED_BY_SDK and sdk_spells(call):
            with refusals(call.operation):
                self._create(call)
            return {}
        client = self.sdk_session.sagemaker_client
        with refusals(call.operation):
            return getattr(client, xform_name(call.operation))(**call.request)

    def _create(self, call: ApiCall) -> None:
        resources = sdk_resources()
        sent: list[str] = []
        event = f"provide-client-params.sagemaker.{call.operation}"
        self.session.events.register(event, lambda **_: sent.append(call.operation), unique_id="launcher-sent")
        resource = getattr(resources, CREATED_BY_SDK[call.operation])
        from pydantic import ValidationError

        try:
            resource.create(session=self.session, region=self.region, **sdk_arguments(call))
        except ValidationError as error:
            if not sent:  # a member that this SDK's shapes do not have yet: its session's client has it
                logger.debug("the SDK's %s does not take this request: %s", resource.__name__, error)
                getattr(self.sdk_session.sagemaker_client, xform_name(call.operation))(**call.request)
            # else: it was created, and only the description that the SDK reads back is newer than the SDK
        except ClientError as error:
            if error.operation_name == call.operation:
                raise
            logger.debug("created, but the SDK may not read it back: %s", error)
        finally:
            self.session.events.unregister(event, unique_id="launcher-sent")

    @functools.cached_property
    def sdk_session(self) -> Any:
        """The SageMaker SDK's session on our boto3 session, without telemetry."""
        sdk_resources()
        from sagemaker.core.helper.session_helper import Session

        return Session(boto_session=self.session, default_bucket="unused", sagemaker_config=NO_TELEMETRY)

    @functools.cached_property
    def account(self) -> str:
        """Twelve digits of the account the credentials belong to."""
        return self.call("sts", "GetCallerIdentity")["Account"]

    def role_arn(self, role: str | None) -> str:
        """The ARN of the jobs' execution role.

        Raises:
            ConfigError: none is configured.
        """
        if not role:
            raise ConfigError(
                "role is not set; put the jobs' execution role (name or ARN) into launcher.yaml or --set role=…"
            )
        if role.startswith("arn:"):
            return role
        return self.call("iam", "GetRole", RoleName=role)["Role"]["Arn"]

    def ensure_bucket(self, bucket: str) -> None:
        """Create the project's bucket where it is missing."""
        try:
            self.client("s3").head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] not in {"404", "NoSuchBucket"}:
                raise AwsRefused(f"the bucket {bucket} cannot be used: {error}") from error
            elsewhere = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
            options: dict[str, Any] = {"CreateBucketConfiguration": elsewhere} if elsewhere else {}
            self.call("s3", "CreateBucket", Bucket=bucket, **options)
            logger.info("-> created the bucket %s", bucket)
        except BotoCoreError as error:
            with refusals("HeadBucket"):
                raise error


def use_environment(variables: Mapping[str, str]) -> None:
    """Point every AWS client made from now on at a local SageMaker; a profile or session of AWS's does not leak in."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    os.environ.update(variables)


@contextmanager
def refusals(operation: str) -> Iterator[None]:
    """Turn botocore's errors into ours: one line with the code, the service's words and what to do.

    Raises:
        AwsRefused: whatever botocore raised.
    """
    try:
        yield
    except ClientError as error:
        code = error.response["Error"].get("Code", "")
        message = error.response["Error"].get("Message", "")
        hint = f"; {HINTS[code]}" if code in HINTS else ""
        raise AwsRefused(f"{operation} was refused: {code}: {message}{hint}", code) from error
    except NoCredentialsError as error:
        raise AwsRefused(
            f"{operation}: there are no AWS credentials; run `aws sso login`, set AWS_PROFILE, or add --local"
        ) from error
    except NoRegionError as error:
        raise AwsRefused(f"{operation}: there is no region; set `region` in launcher.yaml") from error
    except EndpointConnectionError as error:
        raise AwsRefused(f"{operation}: {error}; is the network there, or the local SageMaker up?") from error
    except ParamValidationError as error:
        raise AwsRefused(f"{operation}: {' '.join(str(error).split())}") from error
    except ResponseParserError as error:  # a proxy's page, or an error page of something between
        raise AwsRefused(f"{operation}: the answer is not one of AWS's: {error}") from error
    except BotoCoreError as error:
        raise AwsRefused(f"{operation}: {error}") from error


@functools.cache
def sdk_resources() -> Any:
    """The SDK's resource classes; imported when a request is really sent.

    The import reads configuration files and adds handlers to the root logger; neither is wanted.
    """
    os.environ.update(SDK_ENVIRONMENT)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    from sagemaker.core import resources

    root.handlers[:], root.level = handlers, level
    return resources


def sdk_arguments(call: ApiCall) -> dict[str, Any]:
    """The request as keyword arguments of the SDK's resource class: members in snake case, map keys untouched."""
    model = service_model(call.service)
    return _snake(model["shapes"], model["operations"][call.operation]["input"]["shape"], call.request)


def _snake(shapes: Mapping[str, Any], name: str, value: Any) -> Any:
    shape = shapes[name]
    if shape["type"] == "structure":
        members = shape["members"]
        return {xform_name(key): _snake(shapes, members[key]["shape"], item) for key, item in value.items()}
    if shape["type"] == "list":
        return [_snake(shapes, shape["member"]["shape"], item) for item in value]
    return value


def sdk_spells(call: ApiCall) -> bool:
    """Whether the SDK would send every nested member under its own name.

    It rebuilds the names from snake case: `memory_size_in_mb` leaves as `MemorySizeInMb`, which the API refuses.
    """
    from sagemaker.core.utils.utils import snake_to_pascal

    model = service_model(call.service)
    shape = model["shapes"][model["operations"][call.operation]["input"]["shape"]]
    nested = (
        name
        for key, item in call.request.items()
        for name in _member_names(model["shapes"], shape["members"][key]["shape"], item)
    )
    return all(snake_to_pascal(xform_name(name)) == name for name in nested)


def _member_names(shapes: Mapping[str, Any], name: str, value: Any) -> Iterator[str]:
    shape = shapes[name]
    if shape["type"] == "structure":
        for key, item in value.items():
            yield key
            yield from _member_names(shapes, shape["members"][key]["shape"], item)
    elif shape["type"] == "list":
        for item in value:
            yield from _member_names(shapes, shape["member"]["shape"], item)

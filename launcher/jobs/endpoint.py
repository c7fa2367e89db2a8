"""CreateModel, CreateEndpointConfig, CreateEndpoint: an `endpoint` section as the API's own bodies."""

import math
from dataclasses import dataclass
from typing import Any

from launcher.config import Config, Endpoint, Variant
from launcher.jobs.api import ApiCall, JobContext, content_name, tag_list
from launcher.jobs.common import image_uri, project_uri, tags, vpc_config
from launcher.jobs.hosts import inference_ami
from launcher.jobs.training import prune

DEFAULT_VARIANT = "main"
DOWNLOAD_BYTES_PER_SECOND = 50e6  # S3 to an instance's volume and unpacking, one stream, the slow side of what is seen
LOAD_BYTES_PER_SECOND = 100e6  # reading weights from the volume into the process
DEFAULT_BUDGET_SECONDS = 240  # half of the 480 s in which a container must answer /ping
TIMEOUT_BOUNDS = (60, 3600)


@dataclass(frozen=True)
class ServedModel:
    """A model archive an endpoint or batch job serves."""

    uri: str
    size_bytes: int | None = None
    """Length of the archive, where it is known."""


def model_call(config: Config, context: JobContext, model: ServedModel) -> ApiCall:
    """CreateModel with a name made of its content: the same model is created once."""
    return _model_call(config, context, {"PrimaryContainer": _container(config, context, model)})


def containers_call(config: Config, context: JobContext, models: dict[str, ServedModel]) -> ApiCall:
    """CreateModel of several containers.

    Args:
        config: the project's.
        context: account and role.
        models: container name -> its model; containers without one are left out.
    """
    endpoint = config.endpoint
    containers = [
        _container(config, context, models.get(item.name))
        | prune({"ContainerHostname": item.name, "Image": item.image})
        | ({"Environment": {**endpoint.environment, **item.environment}} if item.environment else {})
        for item in endpoint.containers
    ]
    execution = {"Mode": endpoint.container_mode}
    return _model_call(config, context, {"Containers": containers, "InferenceExecutionConfig": execution})


def _container(config: Config, context: JobContext, model: ServedModel | None) -> dict[str, Any]:
    endpoint = config.endpoint
    return prune(
        {
            "Image": image_uri(config, "serving", context),
            "Mode": "MultiModel" if endpoint.multi_model else None,
            "ModelDataUrl": model.uri if model else None,
            "Environment": dict(endpoint.environment) or None,
        }
    )


def _model_call(config: Config, context: JobContext, containers: dict[str, Any]) -> ApiCall:
    body = prune(
        {
            **containers,
            "ExecutionRoleArn": context.role_arn,
            "VpcConfig": vpc_config(config.network),
            "EnableNetworkIsolation": config.network.isolation or None,
            "Tags": tag_list(tags(config)),
        }
    )
    return ApiCall("sagemaker", "CreateModel", {"ModelName": content_name(config.name, body), **body})


def calls(config: Config, context: JobContext, models: dict[str, ServedModel]) -> list[ApiCall]:
    """The requests that create an endpoint.

    Args:
        config: the project's.
        context: account, bucket and role.
        models: variant name -> its model (one named `main` where the section lists no variants), or container
            name -> its model.

    Returns:
        One CreateModel per different model, then CreateEndpointConfig and CreateEndpoint. Model and configuration
        names are made of the content, so that a second deployment of the same is recognised.
    """
    endpoint = config.endpoint
    if endpoint.containers:
        shared = containers_call(config, context, models)
        model_calls = {DEFAULT_VARIANT: shared}
        sizes = [model.size_bytes for model in models.values() if model.size_bytes is not None]
        models = {DEFAULT_VARIANT: ServedModel("", sum(sizes) if sizes else None)}
    else:
        model_calls = {name: model_call(config, context, model) for name, model in models.items()}
    variants = [
        _variant(config, variant, model_calls[variant.name].request["ModelName"], models[variant.name])
        for variant in endpoint_variants(endpoint)
    ]
    shadow = endpoint.shadow
    body = prune(
        {
            "ProductionVariants": variants,
            "ShadowProductionVariants": [
                _variant(config, shadow, model_calls[shadow.name].request["ModelName"], models[shadow.name])
            ]
            if shadow
            else None,
            "AsyncInferenceConfig": _asynchronous(config, context),
            "DataCaptureConfig": _capture(config, context),
            "KmsKeyId": endpoint.kms_key,
            "Tags": tag_list(tags(config)),
        }
    )
    name = content_name(config.name, body)
    creating = {call.request["ModelName"]: call for call in model_calls.values()}
    return [
        *creating.values(),
        ApiCall("sagemaker", "CreateEndpointConfig", {"EndpointConfigName": name, **body}),
        ApiCall(
            "sagemaker",
            "CreateEndpoint",
            {
                "EndpointName": endpoint_name(config),
                "EndpointConfigName": name,
                "Tags": tag_list(tags(config)),
            },
        ),
    ]


def update_call(config: Config, endpoint_config_name: str) -> ApiCall:
    """UpdateEndpoint to another configuration, as the `rollout` section says."""
    request = {
        "EndpointName": endpoint_name(config),
        "EndpointConfigName": endpoint_config_name,
        "DeploymentConfig": _deployment(config.endpoint),
        # what autoscaling has made of the instance count stays
        "RetainAllVariantProperties": True if config.endpoint.scaling else None,
    }
    return ApiCall("sagemaker", "UpdateEndpoint", prune(request))


def endpoint_name(config: Config) -> str:
    """The endpoint's name; the project's where the section says nothing."""
    return config.endpoint.name or config.name


def endpoint_variants(endpoint: Endpoint) -> list[Variant]:
    """The configured variants, or the one that `model` and `instance_type` describe."""
    return endpoint.variants or [Variant(name=DEFAULT_VARIANT, model=endpoint.model or "")]


def models_of(endpoint: Endpoint) -> dict[str, str]:
    """Variant name -> model text, shadow included; of several containers, those that have a model."""
    if endpoint.containers:
        return {item.name: item.model for item in endpoint.containers if item.model}
    variants = [*endpoint_variants(endpoint), *([endpoint.shadow] if endpoint.shadow else [])]
    return {variant.name: variant.model for variant in variants}


def _variant(config: Config, variant: Variant, model_name: str, model: ServedModel) -> dict[str, Any]:
    endpoint = config.endpoint
    shared = {"VariantName": variant.name, "ModelName": model_name, "InitialVariantWeight": variant.weight}
    if endpoint.serverless:
        return {**shared, "ServerlessConfig": _serverless(endpoint)}
    instance_type = variant.instance_type or endpoint.instance_type
    download, startup = timeouts(endpoint, model.size_bytes)
    return prune(
        {
            **shared,
            "InstanceType": instance_type,
            "InitialInstanceCount": endpoint.instance_count
            if variant.instance_count is None
            else variant.instance_count,
            "InferenceAmiVersion": endpoint.ami or inference_ami(instance_type, config.images.serving.cuda).ami,
            "VolumeSizeInGB": endpoint.volume_size_gb,
            "ModelDataDownloadTimeoutInSeconds": download,
            "ContainerStartupHealthCheckTimeoutInSeconds": startup,
        }
    )


def timeouts(endpoint: Endpoint, size_bytes: int | None) -> tuple[int | None, int | None]:
    """Seconds to download the model and to answer the first /ping; None leaves SageMaker's default."""
    if size_bytes is None:
        return endpoint.download_timeout, endpoint.startup_timeout
    download = _timeout(size_bytes / DOWNLOAD_BYTES_PER_SECOND)
    startup = _timeout(size_bytes / LOAD_BYTES_PER_SECOND)
    if download:
        startup = startup or DEFAULT_BUDGET_SECONDS * 2
    return endpoint.download_timeout or download, endpoint.startup_timeout or startup


def _timeout(expected_seconds: float) -> int | None:
    if expected_seconds * 2 < DEFAULT_BUDGET_SECONDS:
        return None
    lowest, highest = TIMEOUT_BOUNDS
    return max(lowest, min(highest, math.ceil(expected_seconds * 3 / 60) * 60))


def _serverless(endpoint: Endpoint) -> dict[str, Any]:
    serverless = endpoint.serverless
    assert serverless is not None
    return prune(
        {
            "MemorySizeInMB": serverless.memory_mb,
            "MaxConcurrency": serverless.max_concurrency,
            "ProvisionedConcurrency": serverless.provisioned_concurrency,
        }
    )


def _asynchronous(config: Config, context: JobContext) -> dict[str, Any] | None:
    asynchronous = config.endpoint.asynchronous
    if not asynchronous:
        return None
    topics = prune({"SuccessTopic": asynchronous.success_topic, "ErrorTopic": asynchronous.error_topic})
    name = endpoint_name(config)
    return prune(
        {
            "ClientConfig": {"MaxConcurrentInvocationsPerInstance": asynchronous.max_concurrent}
            if asynchronous.max_concurrent
            else None,
            "OutputConfig": {
                "S3OutputPath": asynchronous.output or project_uri(config, context, "async", name, "output"),
                "S3FailurePath": asynchronous.failure or project_uri(config, context, "async", name, "failure"),
                "NotificationConfig": topics or None,
                "KmsKeyId": config.endpoint.kms_key,
            },
        }
    )


def _capture(config: Config, context: JobContext) -> dict[str, Any] | None:
    capture = config.endpoint.capture
    if not capture:
        return None
    return {
        "EnableCapture": True,
        "InitialSamplingPercentage": capture.sampling,
        "DestinationS3Uri": capture.s3_uri or project_uri(config, context, "capture", endpoint_name(config)),
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
        "CaptureContentTypeHeader": {
            "JsonContentTypes": ["application/json", "application/jsonlines"],
            "CsvContentTypes": ["text/csv"],
        },
    }


def _deployment(endpoint: Endpoint) -> dict[str, Any] | None:
    rollout = endpoint.rollout
    if not rollout:
        return None
    routing: dict[str, Any] = {"Type": rollout.type.upper(), "WaitIntervalInSeconds": rollout.wait}
    if rollout.type != "all_at_once":
        key = {"canary": "CanarySize", "linear": "LinearStepSize"}[rollout.type]
        routing[key] = {"Type": "CAPACITY_PERCENT", "Value": rollout.percent}
    alarms = {"Alarms": [{"AlarmName": name} for name in rollout.alarms]}
    return prune(
        {
            "BlueGreenUpdatePolicy": {
                "TrafficRoutingConfiguration": routing,
                "MaximumExecutionTimeoutInSeconds": 14400,
            },
            "AutoRollbackConfiguration": alarms if rollout.alarms else None,
        }
    )

"""CreateModel, CreateEndpointConfig, CreateEndpoint: an `endpoint` section as the API's own bodies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.config import Config
from launcher.config.endpoint import Component, Endpoint, Variant
from launcher.jobs.api import NAME_LIMIT, ApiCall, JobContext, content_name, tag_list
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


def model_call(
    config: Config, context: JobContext, model: ServedModel, environment: dict[str, str] | None = None
) -> ApiCall:
    """CreateModel with a name made of its content: the same model is created once.

    Args:
        config: the project's.
        context: account and role.
        model: where its archive lies.
        environment: variables beside those of `endpoint.environment`.
    """
    container = _container(config, context, model)
    if environment:
        container["Environment"] = {**config.endpoint.environment, **environment}
    return _model_call(config, context, {"PrimaryContainer": container})


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
        model_calls = {
            name: model_call(config, context, model, _component_environment(endpoint, name))
            for name, model in models.items()
        }
    variants = [
        _variant(config, variant, model_calls[variant.name].request["ModelName"], models[variant.name])
        for variant in ([] if endpoint.components else endpoint_variants(endpoint))
    ] or [_host_variant(config)]
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
            **(_host_members(config, context) if endpoint.components else {}),
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


def update_call(config: Config, endpoint_config_name: str, alarms: Sequence[str] = ()) -> ApiCall:
    """UpdateEndpoint to another configuration, as the `rollout` section says; `alarms` may take it back."""
    request = {
        "EndpointName": endpoint_name(config),
        "EndpointConfigName": endpoint_config_name,
        "DeploymentConfig": _deployment(config.endpoint, alarms),
        # what autoscaling has made of the instance count stays
        "RetainAllVariantProperties": True if config.endpoint.scaling else None,
    }
    return ApiCall("sagemaker", "UpdateEndpoint", prune(request))


def endpoint_name(config: Config) -> str:
    """The endpoint's name; the project's where the section says nothing."""
    return config.endpoint.name or config.name


def return_call(config: Config, endpoint_config_name: str) -> ApiCall:
    """UpdateEndpoint back to an earlier configuration: at once, and whatever an alarm says about the present one."""
    section = config.endpoint.model_copy(update={"rollout": None})
    return update_call(config.model_copy(update={"endpoint": section}), endpoint_config_name)


def component_name(config: Config, name: str) -> str:
    """InferenceComponentName, which is the account's: the endpoint's name stands before it."""
    return f"{endpoint_name(config)}-{name}"[:NAME_LIMIT]


def endpoint_variants(endpoint: Endpoint) -> list[Variant]:
    """The configured variants, or the one that `model` and `instance_type` describe."""
    return endpoint.variants or [Variant(name=DEFAULT_VARIANT, model=endpoint.model or "")]


def models_of(endpoint: Endpoint) -> dict[str, str]:
    """Variant name -> model text, shadow included; of several containers, those that have a model."""
    if endpoint.containers:
        return {item.name: item.model for item in endpoint.containers if item.model}
    if endpoint.components:
        return {item.name: item.model for item in endpoint.components}
    variants = [*endpoint_variants(endpoint), *([endpoint.shadow] if endpoint.shadow else [])]
    return {variant.name: variant.model for variant in variants}


def component_calls(config: Config, context: JobContext, models: dict[str, ServedModel]) -> list[ApiCall]:
    """CreateInferenceComponent for each entry of `components`; the endpoint must be in service by then."""
    return [
        ApiCall(
            "sagemaker",
            "CreateInferenceComponent",
            {
                "InferenceComponentName": component_name(config, item.name),
                "EndpointName": endpoint_name(config),
                "VariantName": DEFAULT_VARIANT,
                "Specification": _component_specification(config, context, item, models[item.name]),
                "RuntimeConfig": {"CopyCount": item.copies},
                "Tags": tag_list(tags(config)),
            },
        )
        for item in config.endpoint.components
    ]


def _component_specification(
    config: Config, context: JobContext, item: Component, model: ServedModel
) -> dict[str, Any]:
    download, startup = timeouts(config.endpoint, model.size_bytes)
    environment = _component_environment(config.endpoint, item.name)
    needs = {
        "NumberOfCpuCoresRequired": item.cpus,
        "NumberOfAcceleratorDevicesRequired": item.accelerators,
        "MinMemoryRequiredInMb": item.memory_mb,
    }
    startup_parameters = {
        "ModelDataDownloadTimeoutInSeconds": download,
        "ContainerStartupHealthCheckTimeoutInSeconds": startup,
    }
    return prune(
        {
            "ModelName": model_call(config, context, model, environment).request["ModelName"],
            "StartupParameters": prune(startup_parameters) or None,
            "ComputeResourceRequirements": prune(needs),
        }
    )


def _component_environment(endpoint: Endpoint, name: str) -> dict[str, str] | None:
    return next((item.environment for item in endpoint.components if item.name == name), None)


def _host_variant(config: Config) -> dict[str, Any]:
    """The variant whose machines wait for inference components."""
    endpoint, managed = config.endpoint, config.endpoint.managed_instances
    scaling = (
        {"Status": "ENABLED", "MinInstanceCount": managed.min, "MaxInstanceCount": managed.max} if managed else None
    )
    return prune(
        {
            "VariantName": DEFAULT_VARIANT,
            "InstanceType": endpoint.instance_type,
            "InitialInstanceCount": max(1, endpoint.instance_count),
            "ManagedInstanceScaling": scaling,
            "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
            "InferenceAmiVersion": endpoint.ami
            or inference_ami(endpoint.instance_type, config.images.serving.cuda).ami,
            "VolumeSizeInGB": endpoint.volume_size_gb,
        }
    )


def _host_members(config: Config, context: JobContext) -> dict[str, Any]:
    """What a model brings otherwise: the role and the network."""
    return {
        "ExecutionRoleArn": context.role_arn,
        "VpcConfig": vpc_config(config.network),
        "EnableNetworkIsolation": config.network.isolation or None,
    }


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


def _deployment(endpoint: Endpoint, alarms: Sequence[str]) -> dict[str, Any] | None:
    rollout = endpoint.rollout
    if not rollout:
        return None
    size = {"Type": "CAPACITY_PERCENT", "Value": rollout.percent}
    shared = {"WaitIntervalInSeconds": rollout.wait}
    limit = {"MaximumExecutionTimeoutInSeconds": rollout.timeout}
    back = {"Alarms": [{"AlarmName": name} for name in alarms]} if alarms else None
    if rollout.type == "rolling":
        return prune(
            {"RollingUpdatePolicy": {"MaximumBatchSize": size, **shared, **limit}, "AutoRollbackConfiguration": back}
        )
    routing: dict[str, Any] = {"Type": rollout.type.upper(), **shared}
    if rollout.type != "all_at_once":
        routing[{"canary": "CanarySize", "linear": "LinearStepSize"}[rollout.type]] = size
    policy = {
        "TrafficRoutingConfiguration": routing,
        "TerminationWaitInSeconds": rollout.keep_old or None,
        **limit,
    }
    return prune({"BlueGreenUpdatePolicy": prune(policy), "AutoRollbackConfiguration": back})

"""CreateEndpointConfig and CreateEndpoint: an `endpoint` section as the API's own bodies."""

from typing import Any

from launcher.config import Config
from launcher.config.endpoint import Endpoint, Variant
from launcher.jobs.api import ApiCall, JobContext, content_name, tag_list
from launcher.jobs.common import project_uri, tags, vpc_config
from launcher.jobs.hosts import inference_ami
from launcher.jobs.model import ServedModel, containers_call, model_call, together
from launcher.jobs.timeouts import timeouts
from launcher.jobs.training import prune

DEFAULT_VARIANT = "main"


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
        models = {DEFAULT_VARIANT: together(models.values())}
    else:
        model_calls = {
            name: model_call(config, context, model, component_environment(endpoint, name))
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
    name = content_name(endpoint_name(config), body)  # of no other endpoint: it is deleted with this one
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
    if endpoint.components:
        return {item.name: item.model for item in endpoint.components}
    variants = [*endpoint_variants(endpoint), *([endpoint.shadow] if endpoint.shadow else [])]
    return {variant.name: variant.model for variant in variants}


def component_environment(endpoint: Endpoint, name: str) -> dict[str, str] | None:
    """Variables that one of the endpoint's components has beside those of all."""
    return next((item.environment for item in endpoint.components if item.name == name), None)


def _variant(config: Config, variant: Variant, model_name: str, model: ServedModel) -> dict[str, Any]:
    endpoint = config.endpoint
    shared = {"VariantName": variant.name, "ModelName": model_name, "InitialVariantWeight": variant.weight}
    if endpoint.serverless:
        return {**shared, "ServerlessConfig": _serverless(endpoint)}
    instance_type = variant.instance_type or endpoint.instance_type
    limits = timeouts(endpoint, model)
    return prune(
        {
            **shared,
            "InstanceType": instance_type,
            "InitialInstanceCount": endpoint.instance_count
            if variant.instance_count is None
            else variant.instance_count,
            "InferenceAmiVersion": endpoint.ami or inference_ami(instance_type, config.images.serving.cuda).ami,
            "VolumeSizeInGB": endpoint.volume_size_gb,
            "ModelDataDownloadTimeoutInSeconds": limits.download.seconds,
            "ContainerStartupHealthCheckTimeoutInSeconds": limits.startup.seconds,
        }
    )


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

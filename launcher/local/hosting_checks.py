"""What models and endpoint configurations must satisfy beyond their shape: the service's rules, and gaps here."""

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.local.buckets import BucketError, parse_s3_uri
from launcher.local.checks import check_bucket
from launcher.local.errors import ValidationException
from launcher.local.platform import Platform
from launcher.local.serving import container_definitions
from launcher.local.store import MODEL


def check_model(platform: Platform, request: Mapping[str, Any]) -> None:
    """Refuse a CreateModel without containers, or whose data are not there.

    Raises:
        ValidationException: what is wrong, which value, and what to do.
    """
    if ("PrimaryContainer" in request) == bool(request.get("Containers")):
        raise ValidationException("You must provide either PrimaryContainer or Containers, and not both.")
    definitions = container_definitions(request)
    named = [definition for definition in definitions if "ContainerHostname" in definition]
    if len(definitions) > 1 and named and len(named) != len(definitions):
        raise ValidationException("ContainerHostname must be given for all containers or for none.")
    for definition in definitions:
        if "Image" not in definition:
            raise ValidationException("The local SageMaker needs ContainerDefinition.Image; it has no model packages")
        for uri in _data_uris(definition):
            _check_model_data(platform, uri)


def _data_uris(definition: Mapping[str, Any]) -> Iterator[str]:
    if "ModelDataUrl" in definition:
        yield definition["ModelDataUrl"]
    if "S3DataSource" in definition.get("ModelDataSource", {}):
        yield definition["ModelDataSource"]["S3DataSource"]["S3Uri"]


def _check_model_data(platform: Platform, uri: str) -> None:
    try:
        bucket, key = parse_s3_uri(uri)
        found = platform.buckets.keys(bucket, key)
    except BucketError:
        found = []
    if not found and not uri.endswith("/"):
        raise ValidationException(f"Could not find model data at {uri}.")


def check_endpoint_config(platform: Platform, request: Mapping[str, Any]) -> None:
    """Refuse an endpoint configuration that cannot be deployed.

    Raises:
        ValidationException: what is wrong, which value, and what to do.
    """
    variants = [*request["ProductionVariants"], *request.get("ShadowProductionVariants", [])]
    names = [variant["VariantName"] for variant in variants]
    if len(set(names)) != len(names):
        raise ValidationException(f"Production variant names must be unique: {', '.join(names)}")
    for variant in variants:
        if "ModelName" not in variant and ("ExecutionRoleArn" not in request or "ServerlessConfig" in variant):
            raise ValidationException(
                f"Production variant {variant['VariantName']} has no ModelName: it hosts inference components, and "
                "needs InstanceType and the configuration's ExecutionRoleArn"
            )
        if "ServerlessConfig" in variant:
            _check_serverless(platform, request, variant)
        elif "InstanceType" not in variant:
            raise ValidationException(f"Production variant {variant['VariantName']} needs InstanceType")
    for uri in _output_uris(request):
        check_bucket(platform, uri)


def _output_uris(request: Mapping[str, Any]) -> Iterator[str]:
    output = request.get("AsyncInferenceConfig", {}).get("OutputConfig", {})
    capture = request.get("DataCaptureConfig", {})
    uris = (output.get("S3OutputPath"), output.get("S3FailurePath"), capture.get("DestinationS3Uri"))
    return (uri for uri in uris if uri)


def _check_serverless(platform: Platform, request: Mapping[str, Any], variant: Mapping[str, Any]) -> None:
    """What serverless inference lacks ("Deploy models with Amazon SageMaker Serverless Inference")."""
    model = platform.store.find(MODEL, variant["ModelName"]) or {}
    definitions = container_definitions(model)
    memory = variant["ServerlessConfig"]["MemorySizeInMB"]
    lacking = {
        "an InstanceType": "InstanceType" in variant,
        "several variants": len(request["ProductionVariants"]) > 1,
        "shadow variants": "ShadowProductionVariants" in request,
        "data capture": "DataCaptureConfig" in request,
        "asynchronous inference": "AsyncInferenceConfig" in request,
        "network isolation": model.get("EnableNetworkIsolation", False),
        "a VPC": "VpcConfig" in model,
        "several containers": len(definitions) > 1,
        "multi-model mode": any(item.get("Mode") == "MultiModel" for item in definitions),
        "ModelDataSource": any("ModelDataSource" in item for item in definitions),
        f"{memory} MB of memory (1024 to 6144 in steps of 1024)": memory % 1024 != 0,
    }
    for what, is_asked in lacking.items():
        if is_asked:
            raise ValidationException(f"Serverless variant {variant['VariantName']} cannot have {what}.")

"""What a job's request must satisfy beyond its shape: the service's own rules, and what the local SageMaker lacks."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from container import contract
from launcher.local.buckets import BucketError, parse_s3_uri
from launcher.local.channels import AUGMENTED, FILE_SYSTEMS, file_system_directory
from launcher.local.errors import ValidationException
from launcher.local.inputs import source_objects
from launcher.local.opt_ml import processing_outputs
from launcher.local.platform import Platform
from launcher.local.record_filters import DataProcessing, FilterError, parse_path

PROCESSING_DIR = contract.OptMl().processing
FILTERED_TYPES = ("text/csv", "application/json", "application/jsonlines")


def check_training_job(platform: Platform, request: Mapping[str, Any]) -> None:
    """Refuse a CreateTrainingJob that the service would refuse, or that cannot run here.

    Raises:
        ValidationException: what is wrong, which value, and what to do.
    """
    algorithm = request["AlgorithmSpecification"]
    if "TrainingImage" not in algorithm:
        raise ValidationException(
            "AlgorithmName is not in the local SageMaker; set AlgorithmSpecification.TrainingImage"
        )
    for definition in algorithm.get("MetricDefinitions", []):
        _check_regex(definition)
    _check_resources(request)
    _check_spot(request)
    for channel in request.get("InputDataConfig", []):
        _check_channel(platform, channel, algorithm["TrainingInputMode"])
    check_bucket(platform, request["OutputDataConfig"]["S3OutputPath"])
    if "CheckpointConfig" in request:
        _check_checkpoints(platform, request["CheckpointConfig"])


def _check_regex(definition: Mapping[str, str]) -> None:
    try:
        re.compile(definition["Regex"])
    except re.error as error:
        raise ValidationException(
            f"MetricDefinition {definition['Name']!r}: invalid regular expression {definition['Regex']!r}: {error}"
        ) from error


def _check_resources(request: Mapping[str, Any]) -> None:
    resources = request["ResourceConfig"]
    kinds = [name for name in ("InstanceType", "InstanceGroups", "InstancePreferences") if name in resources]
    if len(kinds) != 1:
        raise ValidationException(
            "ResourceConfig needs InstanceType and InstanceCount, or InstanceGroups, or InstancePreferences; "
            f"it has {' and '.join(kinds) or 'none of them'}"
        )
    preferences = resources.get("InstancePreferences", [])
    if preferences and request.get("EnableManagedSpotTraining"):
        raise ValidationException("InstancePreferences and EnableManagedSpotTraining exclude each other")
    if len({item["InstanceType"] for item in preferences}) < len(preferences):
        raise ValidationException("An instance type can appear only once in InstancePreferences")
    counted = ["InstanceCount" in item for item in preferences]
    if preferences and (any(counted) != all(counted) or all(counted) == ("InstanceCount" in resources)):
        raise ValidationException(
            "InstanceCount must stand in every one of InstancePreferences, or in ResourceConfig alone"
        )


def _check_spot(request: Mapping[str, Any]) -> None:
    stopping = request.get("StoppingCondition", {})
    wait, runtime = stopping.get("MaxWaitTimeInSeconds"), stopping.get("MaxRuntimeInSeconds", 86400)
    is_spot = request.get("EnableManagedSpotTraining", False)
    if is_spot and wait is None:
        raise ValidationException("MaxWaitTimeInSeconds must be present when EnableManagedSpotTraining is true")
    if not is_spot and wait is not None:
        raise ValidationException("MaxWaitTimeInSeconds is only for EnableManagedSpotTraining")
    if wait is not None and wait < runtime:
        raise ValidationException(
            f"Invalid MaxWaitTimeInSeconds {wait}. It must be present and be greater than or equal to "
            f"MaxRuntimeInSeconds {runtime}"
        )


def _check_channel(platform: Platform, channel: Mapping[str, Any], job_mode: str) -> None:
    name = channel["ChannelName"]
    mode = channel.get("InputMode", job_mode)
    if "FileSystemDataSource" in channel["DataSource"]:
        return _check_file_system(platform, channel, mode)
    source = channel["DataSource"].get("S3DataSource")
    if source is None or source.get("S3DataType") not in ("S3Prefix", "ManifestFile", AUGMENTED):
        kind = source and source.get("S3DataType")
        raise ValidationException(
            f"Channel {name}: the local SageMaker has FileSystemDataSource, and S3DataSource with S3Prefix, "
            f"ManifestFile and {AUGMENTED}, not {kind or 'another source'}"
        )
    packed = {channel.get("CompressionType", "None"), channel.get("RecordWrapperType", "None")} - {"None"}
    if packed and mode != "Pipe":
        raise ValidationException(f"Channel {name}: {', '.join(sorted(packed))} is for Pipe mode only")
    if source["S3DataType"] == AUGMENTED:
        return _check_augmented(channel, mode)
    return check_input(platform, source)


def _check_augmented(channel: Mapping[str, Any], mode: str) -> None:
    if mode != "Pipe":
        raise ValidationException(f"Channel {channel['ChannelName']}: {AUGMENTED} is for Pipe mode only")
    if not channel["DataSource"]["S3DataSource"].get("AttributeNames"):
        raise ValidationException(f"Channel {channel['ChannelName']}: {AUGMENTED} needs AttributeNames")


def _check_file_system(platform: Platform, channel: Mapping[str, Any], mode: str) -> None:
    name, source = channel["ChannelName"], channel["DataSource"]["FileSystemDataSource"]
    if mode != "File":
        raise ValidationException(f"Channel {name}: a file system is for File mode only, not {mode}")
    directory = file_system_directory(platform.home, source)
    if not directory.is_dir():
        raise ValidationException(
            f"Channel {name}: nothing stands for {source['FileSystemId']}:{source['DirectoryPath']} on this machine; "
            f"link a directory: mkdir -p {platform.home / FILE_SYSTEMS} && "
            f"ln -s DIRECTORY {platform.home / FILE_SYSTEMS / source['FileSystemId']}"
        )


def check_input(platform: Platform, source: Mapping[str, Any]) -> None:
    """Refuse a source without objects, in the service's words.

    Raises:
        ValidationException: no such bucket, or nothing below the prefix.
    """
    try:
        found = bool(source_objects(platform.buckets, source))
    except BucketError:
        found = False
    if not found:
        raise ValidationException(
            f'No S3 objects found under S3 URL "{source["S3Uri"]}" given in input data source. Please ensure that the '
            f"bucket exists in the selected region ({platform.region}), and that objects exist under that S3 prefix."
        )


def check_bucket(platform: Platform, uri: str) -> None:
    """Refuse a place in S3 that is none.

    Raises:
        ValidationException: no S3 URI, or no such bucket.
    """
    try:
        bucket, _ = parse_s3_uri(uri)
    except BucketError as error:
        raise ValidationException(str(error)) from error
    if not platform.buckets.exists(bucket):
        raise ValidationException(f"The S3 bucket of {uri} does not exist in region {platform.region}; create it first")


def _check_checkpoints(platform: Platform, config: Mapping[str, str]) -> None:
    check_bucket(platform, config["S3Uri"])
    path = PurePosixPath(config.get("LocalPath") or contract.BASE_DIR / "checkpoints")
    if contract.BASE_DIR not in path.parents and PurePosixPath(contract.BASE_DIR) not in path.parents:
        raise ValidationException(
            f"CheckpointConfig.LocalPath={str(path)!r} lies outside {contract.BASE_DIR}, which is all that the local "
            f"SageMaker shares with a container; use {contract.BASE_DIR / 'checkpoints'}"
        )


def check_transform_job(platform: Platform, request: Mapping[str, Any]) -> None:
    """Refuse a CreateTransformJob that the service would refuse, or that cannot run here.

    Raises:
        ValidationException: what is wrong, which value, and what to do.
    """
    source = request["TransformInput"]["DataSource"]["S3DataSource"]
    if source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
        raise ValidationException(f"S3DataType {source['S3DataType']} is not for batch transform")
    payload, concurrent = request.get("MaxPayloadInMB", 0), request.get("MaxConcurrentTransforms", 0)
    if payload * concurrent > 100:
        raise ValidationException(
            f"MaxConcurrentTransforms * MaxPayloadInMB must not exceed 100; "
            f"{concurrent} * {payload} = {concurrent * payload}"
        )
    capture = request.get("DataCaptureConfig", {})
    if capture.get("GenerateInferenceId"):
        raise ValidationException("The local SageMaker appends no inference ids; leave GenerateInferenceId out")
    if capture:
        check_bucket(platform, capture["DestinationS3Uri"])
    _check_data_processing(request)
    check_input(platform, source)
    check_bucket(platform, request["TransformOutput"]["S3OutputPath"])


def _check_data_processing(request: Mapping[str, Any]) -> None:
    """Filters and joins work on CSV, JSON and JSON Lines, the lines of which must be split and assembled as such."""
    processing = DataProcessing.of(request)
    if processing is None:
        return
    content_type = request["TransformInput"].get("ContentType", "").partition(";")[0].strip()
    if content_type not in FILTERED_TYPES:
        raise ValidationException(
            f"DataProcessing needs a ContentType of {', '.join(FILTERED_TYPES)}, not {content_type!r}"
        )
    is_split = request["TransformInput"].get("SplitType") == "Line"
    is_assembled = request["TransformOutput"].get("AssembleWith") == "Line"
    if content_type != "application/json" and not (is_split and is_assembled):
        raise ValidationException(f"DataProcessing of {content_type} needs SplitType and AssembleWith to be Line")
    try:
        for path in (processing.input_filter, processing.output_filter):
            parse_path(path)
    except FilterError as error:
        raise ValidationException(str(error)) from error


def check_processing_job(platform: Platform, request: Mapping[str, Any]) -> None:
    """Refuse a CreateProcessingJob that the service would refuse, or that cannot run here.

    Raises:
        ValidationException: what is wrong, which value, and what to do.
    """
    for item in request.get("ProcessingInputs", []):
        if item.get("AppManaged", False):
            continue
        source = item.get("S3Input")
        if source is None or source.get("S3InputMode") == "Pipe":
            raise ValidationException(f"Input {item['InputName']}: the local SageMaker reads S3Input in File mode only")
        _check_processing_path(source["LocalPath"])
        check_input(platform, source)
    for output in processing_outputs(request):
        _check_processing_path(output["LocalPath"])
        check_bucket(platform, output["S3Uri"])


def _check_processing_path(path: str) -> None:
    if not PurePosixPath(path).is_relative_to(PROCESSING_DIR) or ".." in PurePosixPath(path).parts:
        raise ValidationException(f"LocalPath {path!r} must begin with {PROCESSING_DIR}/")

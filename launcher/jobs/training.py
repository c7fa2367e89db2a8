"""CreateTrainingJob: a `training` section as the API's own body."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from container.contract import (
    CODE_CHANNEL,
    HYPERPARAMETER_LIMITS,
    MAX_RUNTIME_SECONDS,
    PROGRAM,
    SOURCE_TARBALL,
    metric_regex,
)
from launcher.config import Config
from launcher.config.training import Channel, Training
from launcher.errors import ConfigError
from launcher.jobs.api import ApiCall, JobContext, Upload, tag_list, without_none
from launcher.jobs.common import (
    data_directories,
    image_uri,
    is_local_path,
    project_uri,
    tags,
    training_output_uri,
    vpc_config,
)

DEFAULT_PROGRAM = "train.py"
ENVIRONMENT_LIMIT = 100  # entries of CreateTrainingJob's Environment


def calls(config: Config, context: JobContext, instance_type: str | None = None) -> list[ApiCall]:
    """The requests of one training job.

    Args:
        config: the project's.
        context: the job's name, account, bucket and role.
        instance_type: this one alone, whatever is configured.

    Raises:
        ConfigError: hyperparameters, an environment or a channel that SageMaker would refuse.
    """
    training = config.training
    request = {
        "TrainingJobName": context.job_name,
        "RoleArn": context.role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": image_uri(config, "training", context),
            "TrainingInputMode": training.input_mode,
            "MetricDefinitions": metric_definitions(training) or None,
            "EnableSageMakerMetricsTimeSeries": True,
        },
        "HyperParameters": hyperparameters(training.hyperparameters) or None,
        "InputDataConfig": channels(config, context) or None,
        "OutputDataConfig": {
            "S3OutputPath": training_output_uri(config, context),
            "KmsKeyId": training.output.kms_key,
            "CompressionType": training.output.compression if training.output.compression != "GZIP" else None,
        },
        "ResourceConfig": resources(training, instance_type),
        "StoppingCondition": {
            "MaxRuntimeInSeconds": training.max_runtime,
            "MaxWaitTimeInSeconds": max_wait(training),
            "MaxPendingTimeInSeconds": training.max_pending,
        },
        "EnableManagedSpotTraining": True if training.spot else None,
        "CheckpointConfig": checkpoint_config(config, context),
        "Environment": environment(training),
        "RetryStrategy": {"MaximumRetryAttempts": training.retry_attempts} if training.retry_attempts else None,
        "RemoteDebugConfig": {"EnableRemoteDebug": True} if training.remote_debug else None,
        "VpcConfig": vpc_config(config.network),
        "EnableNetworkIsolation": config.network.isolation or None,
        "EnableInterContainerTrafficEncryption": config.network.encrypt_traffic or None,
        "Tags": tag_list(tags(config)),
    }
    return [ApiCall("sagemaker", "CreateTrainingJob", prune(request))]


def prune(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without unset members, at any depth."""
    return {
        key: prune(value) if isinstance(value, Mapping) else value for key, value in body.items() if value is not None
    }


def metric_definitions(training: Training) -> list[dict[str, str]]:
    """MetricDefinitions: given expressions as they stand, names as the containers print them."""
    metrics = training.metrics
    named = metrics if isinstance(metrics, dict) else {name: metric_regex(name) for name in metrics}
    return [{"Name": name, "Regex": regex} for name, regex in named.items()]


def hyperparameters(nested: Mapping[str, Any]) -> dict[str, str]:
    """Hyperparameters as the API takes them: dotted names and texts (numbers, lists and booleans as JSON).

    Raises:
        ConfigError: more, longer or other values than SageMaker takes (contract 1.20).
    """
    flat = dict(_flatten("", nested))
    if len(flat) > HYPERPARAMETER_LIMITS["count"]:
        raise ConfigError(
            f"training.hyperparameters has {len(flat)} entries and SageMaker takes {HYPERPARAMETER_LIMITS['count']}; "
            "put the rest into a file in a channel"
        )
    for name, value in flat.items():
        _check_hyperparameter(name, value)
    return flat


def _flatten(prefix: str, nested: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += _flatten(f"{name}.", value)
        elif value is not None:
            pairs.append((name, value if isinstance(value, str) else json.dumps(value, default=str)))
    return pairs


def _check_hyperparameter(name: str, value: str) -> None:
    for what, text in (("name", name), ("value", value)):
        limit = HYPERPARAMETER_LIMITS[what]
        if len(text) > limit:
            raise ConfigError(
                f"training.hyperparameters.{name[:60]}: its {what} has {len(text)} characters and SageMaker takes "
                f"{limit}; put it into a file in a channel"
            )


def channels(config: Config, context: JobContext) -> list[dict[str, Any]]:
    """InputDataConfig; a local directory stands there as the place it is uploaded to."""
    entries = [_channel(name, channel, config, context) for name, channel in config.training.channels.items()]
    if config.training.code:
        source = project_uri(config, context, "code", context.job_name, "")
        entries.append(_channel(CODE_CHANNEL, Channel(source=source, mode="File"), config, context))
    return entries


def _channel(name: str, channel: Channel, config: Config, context: JobContext) -> dict[str, Any]:
    return without_none(
        {
            "ChannelName": name,
            "DataSource": _data_source(name, channel, config, context),
            "InputMode": channel.mode,
            "ContentType": channel.content_type,
            "CompressionType": channel.compression,
            "RecordWrapperType": channel.record_wrapper,
            "ShuffleConfig": None if channel.shuffle_seed is None else {"Seed": channel.shuffle_seed},
        }
    )


def _data_source(name: str, channel: Channel, config: Config, context: JobContext) -> dict[str, Any]:
    if channel.source.startswith("fs-"):
        if not config.network.subnets:
            raise ConfigError(
                f"training.channels.{name}: a file system is reached from your VPC only; "
                "set network.subnets and network.security_groups to those of its mount targets"
            )
        file_system, _, path = channel.source.partition(":")
        return {
            "FileSystemDataSource": {
                "FileSystemId": file_system,
                "FileSystemType": channel.file_system,
                "FileSystemAccessMode": "ro" if channel.read_only else "rw",
                "DirectoryPath": path or "/",
            }
        }
    local = is_local_path(channel.source)
    source = without_none(
        {
            "S3DataType": channel.data_type,
            "S3Uri": channel_uri(config, context, name) if local else channel.source,
            "S3DataDistributionType": channel.distribution,
            "AttributeNames": channel.attributes or None,
            "InstanceGroupNames": channel.instance_groups or None,
        }
    )
    return {"S3DataSource": source}


def channel_uri(config: Config, context: JobContext, name: str) -> str:
    """Where a local channel is uploaded to; the same for every job, so that only changes travel."""
    return project_uri(config, context, "data", name, "")


def uploads(config: Config, context: JobContext, directory: Path) -> list[Upload]:
    """Local directories the job needs in S3."""
    training = config.training
    found = [
        Upload(directory / channel.source, channel_uri(config, context, name))
        for name, channel in training.channels.items()
        if is_local_path(channel.source)
    ]
    if training.code:
        place = project_uri(config, context, "code", context.job_name, "")
        found.append(Upload(directory / training.code, place, data_directories(config, directory)))
    return found


def refuse_missing(training: Training, directory: Path) -> None:
    """Look for what of this machine the job needs.

    Raises:
        ConfigError: a directory or the script is not where the configuration says.
    """
    for name, channel in training.channels.items():
        if is_local_path(channel.source) and not (directory / channel.source).exists():
            raise ConfigError(f"training.channels.{name}: {directory / channel.source} does not exist")
    if not training.code:
        return
    code, program = directory / training.code, training.program or DEFAULT_PROGRAM
    if not code.is_dir():
        raise ConfigError(f"training.code: {code} is no directory")
    if not any((code / name).exists() for name in (program, f"{program}.py", SOURCE_TARBALL)):
        found = ", ".join(sorted(path.name for path in code.glob("*.py"))) or "no Python file"
        raise ConfigError(f"training.code: {code} has {found}, and no {program}; name the script in training.program")


def environment(training: Training) -> dict[str, str]:
    """The job's environment: its time limit, which SageMaker tells no container, and its script if it has its own.

    Raises:
        ConfigError: more entries than SageMaker takes.
    """
    ours = {MAX_RUNTIME_SECONDS: str(training.max_runtime)}
    if training.code:
        ours[PROGRAM] = training.program or DEFAULT_PROGRAM
    merged = {**ours, **training.environment}
    if len(merged) > ENVIRONMENT_LIMIT:
        raise ConfigError(
            f"training.environment makes {len(merged)} entries with {' and '.join(ours)}, and SageMaker takes "
            f"{ENVIRONMENT_LIMIT}; put the rest into a file in a channel"
        )
    return merged


def resources(training: Training, instance_type: str | None) -> dict[str, Any]:
    """ResourceConfig: one kind of machine, several to choose from, or named groups of several kinds."""
    shared = without_none(
        {
            "VolumeSizeInGB": training.volume_size_gb,
            "VolumeKmsKeyId": training.volume_kms_key,
            "KeepAlivePeriodInSeconds": training.keep_alive,
        }
    )
    if training.instance_groups:
        groups = [
            {
                "InstanceGroupName": group.name,
                "InstanceType": group.instance_type,
                "InstanceCount": group.instance_count,
            }
            for group in training.instance_groups
        ]
        return {"InstanceGroups": groups, **shared}
    count = {"InstanceCount": training.instance_count, **shared}
    if instance_type is None and sagemaker_chooses(training):
        return {"InstancePreferences": [{"InstanceType": name} for name in types_of(training)], **count}
    return {"InstanceType": instance_type or training.instance_type[0], **count}


def types_of(training: Training) -> list[str]:
    """The instance types in their order, each once."""
    return list(dict.fromkeys(training.instance_type))


def sagemaker_chooses(training: Training) -> bool:
    """Whether SageMaker itself takes the first type with capacity; of spot capacity it does not."""
    return len(types_of(training)) > 1 and not training.spot and not training.instance_groups


def max_wait(training: Training) -> int | None:
    """MaxWaitTimeInSeconds of a spot job: as configured, else twice the run time (within SageMaker's 28 days)."""
    if not training.spot:
        return None
    return training.spot.max_wait or min(2 * training.max_runtime, 28 * 86400)


def checkpoint_config(config: Config, context: JobContext) -> dict[str, str] | None:
    """CheckpointConfig; a spot job always has one, else an interruption would lose everything."""
    checkpoints = config.training.checkpoints
    if not checkpoints and not config.training.spot:
        return None
    uri = checkpoints.s3_uri if checkpoints else None
    body = {
        "S3Uri": uri or project_uri(config, context, "checkpoints", context.job_name),
        "LocalPath": checkpoints.local_path if checkpoints else None,
    }
    return without_none(body)


def sdk_script_mode_problems(request: Mapping[str, Any]) -> list[str]:
    """Why the SageMaker SDK's own driver script (v3 `SourceCode`, channel `sm_drivers`) would die on a request.

    It exports every channel and hyperparameter as a shell variable, unquoted; our images do not use it.
    """
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    if "sm_drivers" not in names:
        return []
    found = [
        f"channel {name!r}: its name must be letters, digits and _" for name in names if not re.fullmatch(r"\w+", name)
    ]
    for name, value in request.get("HyperParameters", {}).items():
        if not re.fullmatch(r"\w+", name.replace("-", "_"), re.ASCII):
            found.append(f"hyperparameter {name!r}: its name must be letters, digits and _")
        if "'" in value:
            found.append(f"hyperparameter {name!r}: a single quote in its value breaks the script")
    return found

"""Lays out `/opt/ml` for one host of a job, as SageMaker does. Tests build their trees with it, too."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from container.contract import BASE_DIR, DEFAULT_NETWORK_INTERFACE, OptMl

HOMOGENEOUS_GROUP = "homogeneousCluster"
UNSET_PROCESSING_MEMBERS = dict.fromkeys(  # "null is used for unset fields" of processingjobconfig.json
    ("Environment", "ProcessingInputs", "ProcessingOutputConfig", "NetworkConfig", "ExperimentConfig")
)


def write_training_input(
    opt_ml: OptMl,
    request: Mapping[str, Any],
    current_host: str,
    hosts: Sequence[str],
    network_interface: str = DEFAULT_NETWORK_INTERFACE,
) -> None:
    """Write the three configuration files of `input/config` and create the directories the service creates.

    Args:
        opt_ml: the host's own tree.
        request: a CreateTrainingJob body; read are HyperParameters, InputDataConfig, AlgorithmSpecification,
            ResourceConfig and CheckpointConfig.
        current_host: one of `hosts`.
        hosts: every host of the job.
        network_interface: what `network_interface_name` says.
    """
    for directory in (opt_ml.config, opt_ml.data, opt_ml.model, opt_ml.output_data):
        directory.mkdir(parents=True, exist_ok=True)
    if "CheckpointConfig" in request:
        opt_ml.checkpoints.mkdir(parents=True, exist_ok=True)
    for channel in request.get("InputDataConfig", []):
        if input_mode(request, channel) != "Pipe":
            opt_ml.channel(channel["ChannelName"]).mkdir(parents=True, exist_ok=True)
    _write(opt_ml.hyperparameters, request.get("HyperParameters", {}))
    _write(opt_ml.input_data_config, input_data_config(request))
    _write(opt_ml.resource_config, resource_config(request, current_host, hosts, network_interface))


def input_data_config(request: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The content of inputdataconfig.json: no S3 location is shown to the container."""
    channels = {}
    for channel in request.get("InputDataConfig", []):
        source = channel.get("DataSource", {}).get("S3DataSource", {})
        mode = input_mode(request, channel)
        entry = {
            "TrainingInputMode": "File" if mode == "FastFile" else mode,  # what the current guide says is written
            "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
            "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        }
        if "ContentType" in channel:
            entry["ContentType"] = channel["ContentType"]
        channels[channel["ChannelName"]] = entry
    return channels


def input_mode(request: Mapping[str, Any], channel: Mapping[str, Any]) -> str:
    """`File`, `FastFile` or `Pipe`: the channel's own, else the job's."""
    job_mode = request.get("AlgorithmSpecification", {}).get("TrainingInputMode", "File")
    return str(channel.get("InputMode", job_mode))


def resource_config(
    request: Mapping[str, Any], current_host: str, hosts: Sequence[str], network_interface: str
) -> dict[str, Any]:
    """The content of resourceconfig.json; a job without instance groups is one group, `homogeneousCluster`."""
    resources = request.get("ResourceConfig", {})
    groups = resources.get("InstanceGroups") or [
        {
            "InstanceGroupName": HOMOGENEOUS_GROUP,
            "InstanceType": resources.get("SelectedInstanceType") or resources.get("InstanceType", "ml.m5.large"),
            "InstanceCount": len(hosts),
        }
    ]
    described, rest = [], list(hosts)
    for group in groups:
        count = group["InstanceCount"]
        described.append(
            {
                "instance_group_name": group["InstanceGroupName"],
                "instance_type": group["InstanceType"],
                "hosts": rest[:count],
            }
        )
        rest = rest[count:]
    current = next(group for group in described if current_host in group["hosts"])
    return {
        "current_host": current_host,
        "current_instance_type": current["instance_type"],
        "current_group_name": current["instance_group_name"],
        "hosts": list(hosts),
        "instance_groups": described,
        "network_interface_name": network_interface,
    }


def write_processing_input(
    opt_ml: OptMl, request: Mapping[str, Any], arn: str, host: str, hosts: Sequence[str]
) -> None:
    """Write the two configuration files of a processing job, and create the directories of its outputs.

    Args:
        opt_ml: the host's own tree.
        request: a CreateProcessingJob body.
        arn: of the job.
        host: one of `hosts`.
        hosts: every host of the job.
    """
    opt_ml.processing_config.mkdir(parents=True, exist_ok=True)
    opt_ml.output.mkdir(parents=True, exist_ok=True)
    for output in processing_outputs(request):
        below(opt_ml, output["LocalPath"]).mkdir(parents=True, exist_ok=True)
    config = {**UNSET_PROCESSING_MEMBERS, **request, "ProcessingJobArn": arn}
    resources = {"current_host": host, "hosts": list(hosts), "network_interface_name": DEFAULT_NETWORK_INTERFACE}
    _write(opt_ml.processing_job_config, config)
    _write(opt_ml.processing_resource_config, resources)


def processing_outputs(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The S3Output of every output of a CreateProcessingJob body."""
    outputs = request.get("ProcessingOutputConfig", {}).get("Outputs", [])
    return [output["S3Output"] for output in outputs if "S3Output" in output]


def below(opt_ml: OptMl, local_path: str) -> Path:
    """Where a path that a request gives below `/opt/ml` lies in a host's tree."""
    return opt_ml.base / Path(local_path).relative_to(BASE_DIR)


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))

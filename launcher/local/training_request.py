"""What a CreateTrainingJob request says, and the service's words for a job's states. Pure functions."""

from collections.abc import Mapping, Sequence
from typing import Any

from container import contract
from container.contract import truncate_utf8
from launcher.local.opt_ml import resource_config
from launcher.local.store import Document

STATUS_MESSAGES = {
    "Starting": "Preparing the instances for training",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Interrupted": "Managed spot training interrupted: the instance was reclaimed",
    "Stopping": "Stopping the training job",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
}


def with_selected_instances(request: Document) -> Document:
    """The request with the machines that it gets: the first of its InstancePreferences, as there is room here."""
    resources = request["ResourceConfig"]
    if "InstancePreferences" not in resources:
        return request
    first = resources["InstancePreferences"][0]
    count = first.get("InstanceCount", resources.get("InstanceCount"))
    selected = {"SelectedInstanceType": first["InstanceType"], "SelectedInstanceCount": count}
    return {**request, "ResourceConfig": {**resources, **selected}}


def host_names(request: Mapping[str, Any]) -> list[str]:
    """`algo-1` .. `algo-N` over all instances of the request."""
    resources = request["ResourceConfig"]
    groups = resources.get("InstanceGroups") or [
        {"InstanceCount": resources.get("SelectedInstanceCount", resources.get("InstanceCount", 1))}
    ]
    return [f"algo-{index}" for index in range(1, 1 + sum(group["InstanceCount"] for group in groups))]


def hosts_of_groups(request: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The hosts of the named instance groups; every host where no group is named."""
    hosts = host_names(request)
    if not names:
        return hosts
    groups = resource_config(request, hosts[0], hosts, "")["instance_groups"]
    return [host for group in groups if group["instance_group_name"] in names for host in group["hosts"]]


def job_environment(request: Mapping[str, Any], arn: str) -> dict[str, str]:
    """What the platform itself sets, under the request's own variables."""
    return {
        contract.TRAINING_JOB_NAME: request["TrainingJobName"],
        contract.TRAINING_JOB_ARN: arn,
        contract.MAX_RUNTIME_SECONDS: str(max_runtime_seconds(request)),
        contract.LOCAL: "true",
        **request.get("Environment", {}),
    }


def max_runtime_seconds(request: Mapping[str, Any]) -> int:
    """StoppingCondition.MaxRuntimeInSeconds; "the default value is 1 day"."""
    return int(request.get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 86400))


def failure_reason(failure_text: str, exit_code: int) -> str:
    """FailureReason in the service's form; the text is cut so that the exit code stays."""
    end = f", exit code: {exit_code}"
    text = truncate_utf8(failure_text, contract.FAILURE_REASON_LIMIT - len("AlgorithmError: ") - len(end))
    return f"AlgorithmError: {text}{end}"


def next_transitions(transitions: list[Document], status: str, now: float) -> list[Document]:
    """SecondaryStatusTransitions with the last one ended and a new one begun."""
    ended = [dict(transition) for transition in transitions]
    if ended and "EndTime" not in ended[-1]:
        ended[-1]["EndTime"] = now
    return [*ended, {"Status": status, "StartTime": now, "StatusMessage": STATUS_MESSAGES[status]}]

"""What hangs on an endpoint beside its configuration: alarms, inference components, scaling; made, kept and removed."""

import logging
import time
from typing import Any

from launcher.errors import AwsRefused, JobFailed, TimedOut
from launcher.jobs import alarms, components, scaling
from launcher.jobs.api import ApiCall
from launcher.jobs.scaling import SERVICE
from launcher.project import Project

logger = logging.getLogger(__name__)

NAMES_AT_ONCE = 100  # DescribeAlarms takes so many
COMPONENT_SECONDS = 3600.0  # ModelDataDownloadTimeoutInSeconds and the start's are this at most
COMPONENT_POLL_SECONDS = 0.5


# --- alarms -----------------------------------------------------------------------------------------------------------


def alarm_changes(project: Project) -> list[tuple[str, ApiCall]]:
    """The alarms that the rollout asks for, each with `create`, `update` or `keep`."""
    wanted = alarms.calls(project.config)
    names = [call.request["AlarmName"] for call in wanted]
    there = {item["AlarmName"]: item for item in described_alarms(project, names)}
    return [(_change(there.get(call.request["AlarmName"]), call.request), call) for call in wanted]


def _change(there: dict[str, Any] | None, wanted: dict[str, Any]) -> str:
    if there is None:
        return "create"
    compared = wanted.keys() - {"Tags"}
    return "keep" if all(there.get(member) == wanted[member] for member in compared) else "update"


def described_alarms(project: Project, names: list[str]) -> list[dict[str, Any]]:
    """Those of the alarms that are there."""
    found = []
    for start in range(0, len(names), NAMES_AT_ONCE):
        reply = project.aws.call("cloudwatch", "DescribeAlarms", AlarmNames=names[start : start + NAMES_AT_ONCE])
        found += reply["MetricAlarms"]
    return found


def remove_alarms(project: Project, name: str) -> None:
    """Delete the alarms that the launcher has made for an endpoint."""
    _remove_alarms(project, name, {alarms.DESCRIPTION.format(name), scaling.DESCRIPTION.format(name)})


def _remove_alarms(project: Project, name: str, descriptions: set[str], kept: frozenset[str] = frozenset()) -> None:
    try:
        reply = project.aws.call("cloudwatch", "DescribeAlarms", AlarmNamePrefix=f"{name}-")
    except AwsRefused as error:
        logger.warning("alarms of %s stay as they are: %s", name, error)
        return
    made = {item["AlarmName"] for item in reply["MetricAlarms"] if item.get("AlarmDescription") in descriptions}
    if made - kept:
        project.aws.send(ApiCall("cloudwatch", "DeleteAlarms", {"AlarmNames": sorted(made - kept)}))


# --- scaling ----------------------------------------------------------------------------------------------------------


def scale(project: Project) -> None:
    """Make the scaling what the configuration says, and end what it no longer says."""
    calls = scaling.calls(project.config)
    arns: dict[str, str] = {}
    for call in calls:
        reply = project.aws.send(_with_arns(call, arns))
        if call.operation == "PutScalingPolicy":
            arns[call.request["PolicyName"]] = reply["PolicyARN"]
    for call in calls:
        if call.operation == "RegisterScalableTarget":
            _remove_other_policies(project, call.request, calls)
            limits = call.request
            logger.info(
                "-> scales from %d to %d: %s", limits["MinCapacity"], limits["MaxCapacity"], limits["ResourceId"]
            )


def _with_arns(call: ApiCall, arns: dict[str, str]) -> ApiCall:
    if call.operation != "PutMetricAlarm":
        return call
    known = {scaling.policy_arn(name): arn for name, arn in arns.items()}
    actions = [known.get(action, action) for action in call.request["AlarmActions"]]
    return ApiCall(call.service, call.operation, {**call.request, "AlarmActions": actions})


def _remove_other_policies(project: Project, target: dict[str, Any], calls: list[ApiCall]) -> None:
    """Policies and scheduled actions of an earlier configuration would go on scaling."""
    named = {key: target[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    for noun, listed, member in (
        ("ScalingPolicy", "ScalingPolicies", "PolicyName"),
        ("ScheduledAction", "ScheduledActions", "ScheduledActionName"),
    ):
        wanted = {call.request.get(member) for call in calls}
        for item in project.aws.call(SERVICE, f"Describe{listed}", **named)[listed]:
            if item[member] not in wanted:
                project.aws.send(ApiCall(SERVICE, f"Delete{noun}", {**named, member: item[member]}))


def stop_scaling(project: Project, name: str, resource_ids: list[str]) -> None:
    """End the scaling of an endpoint; a caller who may not see it is told, and nothing else happens."""
    for call in _removal_calls(project, name, resource_ids):
        project.aws.send(call)


def _removal_calls(project: Project, name: str, resource_ids: list[str]) -> list[ApiCall]:
    """What ends the scaling of those resources that scale."""
    if not resource_ids:
        return []
    try:
        reply = project.aws.call(
            SERVICE, "DescribeScalableTargets", ServiceNamespace="sagemaker", ResourceIds=resource_ids
        )
    except AwsRefused as error:
        logger.warning("scaling of %s stays as it is: %s", name, error)
        return []
    return [scaling.removal_call(item["ResourceId"], item["ScalableDimension"]) for item in reply["ScalableTargets"]]


def variant_ids(name: str, variants: list[str]) -> list[str]:
    """ResourceIds of an endpoint's variants."""
    return [f"endpoint/{name}/variant/{variant}" for variant in variants]


def scaling_left_over(project: Project, name: str, variants: list[str]) -> list[ApiCall]:
    """What ends the scaling that an earlier configuration asked for and this one does not."""
    hosted = [
        f"inference-component/{components.component_name(project.config, item.name)}"
        for item in project.config.endpoint.components
    ]
    wanted = {call.request.get("ResourceId") for call in scaling.calls(project.config)}
    others = [item for item in [*variant_ids(name, variants), *hosted] if item not in wanted]
    return _removal_calls(project, name, others)


def end_scaling(project: Project, name: str, removal: ApiCall) -> None:
    """End the scaling of one resource; policies go with it, the alarms that called them do not by themselves."""
    project.aws.send(removal)
    kept = {call.request["AlarmName"] for call in scaling.calls(project.config) if call.operation == "PutMetricAlarm"}
    _remove_alarms(project, name, {scaling.DESCRIPTION.format(name)}, frozenset(kept))


# --- inference components ---------------------------------------------------------------------------------------------


def hosts_components(project: Project, config_name: str) -> bool:
    """Whether a configuration has a variant without a model of its own."""
    config = project.describe_or_none("EndpointConfig", config_name) or {}
    return any("ModelName" not in variant for variant in config.get("ProductionVariants", []))


def components_of(project: Project, name: str) -> list[str]:
    """Names of an endpoint's inference components."""
    found = project.aws.listed("ListInferenceComponents", "InferenceComponents", EndpointNameEquals=name)
    return [item["InferenceComponentName"] for item in found]


def component_changes(project: Project, name: str, is_there: bool) -> list[tuple[str, ApiCall]]:
    """What makes an endpoint's inference components what the configuration says, each with its action.

    Args:
        project: the configuration.
        name: the endpoint's.
        is_there: whether the endpoint may host some.
    """
    context = project.context()
    models = {item.name: project.served_model(context, item.model) for item in project.config.endpoint.components}
    wanted = components.calls(project.config, context, models)
    names = {call.request["InferenceComponentName"] for call in wanted}
    others = [other for other in components_of(project, name) if other not in names] if is_there else []
    removals = [ApiCall("sagemaker", "DeleteInferenceComponent", {"InferenceComponentName": other}) for other in others]
    return [*(("delete", call) for call in removals), *(_component_change(project, call) for call in wanted)]


def _component_change(project: Project, call: ApiCall) -> tuple[str, ApiCall]:
    request = call.request
    there = project.describe_or_none("InferenceComponent", request["InferenceComponentName"])
    if there is None:
        return "create", call
    members = request["Specification"]
    change = {}
    if any(there["Specification"].get(member) != value for member, value in members.items()):
        change["Specification"] = members
    is_right = there["RuntimeConfig"]["DesiredCopyCount"] == request["RuntimeConfig"]["CopyCount"]
    if not (is_right or _scales(project, request["InferenceComponentName"])):
        change["RuntimeConfig"] = request["RuntimeConfig"]
    if not change:
        return "keep", call
    named = {"InferenceComponentName": request["InferenceComponentName"]}
    return "update", ApiCall("sagemaker", "UpdateInferenceComponent", named | change)


def _scales(project: Project, name: str) -> bool:
    """Whether the number of a component's copies is autoscaling's."""
    section = project.config.endpoint.components
    return any(item.scaling and components.component_name(project.config, item.name) == name for item in section)


def place_components(project: Project, name: str) -> None:
    """Create, update and delete inference components until they are what the configuration says.

    Raises:
        JobFailed: one of them did not start; the others are what they should be.
        TimedOut: one is still starting after a long time.
    """
    changes = component_changes(project, name, is_there=True)
    for action, call in changes:
        if action == "delete":
            remove_component(project, call.request["InferenceComponentName"])
        elif action != "keep":
            project.send([call])
    for action, call in changes:
        if action != "delete":
            _wait(project, call.request["InferenceComponentName"])


def _wait(project: Project, name: str) -> None:
    deadline = time.monotonic() + COMPONENT_SECONDS
    while True:
        there = project.aws.call("sagemaker", "DescribeInferenceComponent", InferenceComponentName=name)
        if there["InferenceComponentStatus"] == "InService":
            logger.info("-> %s: %d copies", name, there["RuntimeConfig"]["CurrentCopyCount"])
            return
        if there["InferenceComponentStatus"] == "Failed":
            raise JobFailed(f"inference component {name} failed: {there.get('FailureReason', 'no reason given')}")
        if time.monotonic() > deadline:
            raise TimedOut(f"inference component {name} is not in service after {COMPONENT_SECONDS:.0f} s; look again")
        time.sleep(COMPONENT_POLL_SECONDS)


def remove_component(project: Project, name: str) -> None:
    """Delete an inference component and wait until it is gone.

    Raises:
        TimedOut: it is still there after a long time.
    """
    stop_scaling(project, name, [f"inference-component/{name}"])
    project.send([ApiCall("sagemaker", "DeleteInferenceComponent", {"InferenceComponentName": name})])
    deadline = time.monotonic() + COMPONENT_SECONDS
    while project.describe_or_none("InferenceComponent", name):
        if time.monotonic() > deadline:
            raise TimedOut(f"inference component {name} is still being deleted after {COMPONENT_SECONDS:.0f} s")
        time.sleep(COMPONENT_POLL_SECONDS)

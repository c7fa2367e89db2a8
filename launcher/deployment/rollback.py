"""Back to what an endpoint served before its last update, also while that update is under way."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launcher import attachments, run
from launcher.deployment.delete import variants_of
from launcher.deployment.tags import PREVIOUS_TAG, set_tags, tags_of
from launcher.errors import ConfigError, JobFailed
from launcher.jobs import alarms
from launcher.jobs.api import ApiCall
from launcher.jobs.endpoint import endpoint_name, endpoint_variants
from launcher.jobs.update import return_call
from launcher.project import Project

logger = logging.getLogger(__name__)

REASON = "rollback was asked for"


@dataclass(frozen=True)
class WayBack:
    """Where an endpoint goes back to."""

    name: str
    config_name: str
    """The endpoint configuration that it will have again."""
    previous: str
    """The one that it leaves; `rollback` once more goes there."""


def begin(project: Project, name: str, wait: bool = True) -> WayBack:
    """Ask for the configuration before the last update.

    SageMaker has no request that stops an update. One that alarms of the launcher's watch is taken back by setting
    such an alarm off; any other has to end first, and `finish` sends it back then.

    Returns:
        What `finish` waits for.

    Raises:
        ConfigError: there is nothing to go back to, or nobody waits for an update that cannot be stopped.
    """
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    status, serving = description["EndpointStatus"], description["EndpointConfigName"]
    if status in NO_WAY:
        raise ConfigError(f"endpoint {name} is {status}{NO_WAY[status].format(name=name + project.aws.flags)}")
    coming = description.get("PendingDeploymentSummary", {}).get("EndpointConfigName", serving)
    if coming != serving:
        _interrupt(project, description, coming, wait)
        return WayBack(name, serving, coming)
    target = _target(project, description)
    project.send([_call(project, name, target)])
    return WayBack(name, target, serving)


NO_WAY = {
    "Creating": " for the first time: there is nothing to go back to; `python -m launcher delete {name}` ends it",
    "Failed": ": it serves nothing and cannot be updated; deploy the model you want, which makes it anew",
    "Deleting": ": it is being deleted",
    "RollingBack": " already; `python -m launcher attach {name}` waits for it",
    "SystemUpdating": ": SageMaker maintains it; try again when `python -m launcher attach {name}` has ended",
}


def _target(project: Project, description: dict[str, Any]) -> str:
    name, serving = description["EndpointName"], description["EndpointConfigName"]
    target = tags_of(project, description["EndpointArn"]).get(PREVIOUS_TAG)
    if not target:
        raise ConfigError(f"endpoint {name} has not been updated by the launcher; there is nothing to go back to")
    if target == serving:
        raise ConfigError(f"endpoint {name} serves {target} already; its last update was taken back")
    if not project.describe_or_none("EndpointConfig", target):
        raise ConfigError(f"the configuration {target} has been deleted; deploy the model you want instead")
    return target


def _call(project: Project, name: str, target: str) -> ApiCall:
    section = project.config.endpoint
    scaling = section.scaling if name == endpoint_name(project.config) else None
    changed = section.model_copy(update={"name": name, "scaling": scaling})
    return return_call(project.config.model_copy(update={"endpoint": changed}), target)


def _interrupt(project: Project, description: dict[str, Any], coming: str, wait: bool) -> None:
    name = description["EndpointName"]
    watched = description.get("LastDeploymentConfig", {}).get("AutoRollbackConfiguration", {}).get("Alarms", [])
    there = attachments.described_alarms(project, [item["AlarmName"] for item in watched])
    ours = [item["AlarmName"] for item in there if item.get("AlarmDescription") == alarms.DESCRIPTION.format(name)]
    if ours:
        request = {"AlarmName": ours[0], "StateValue": "ALARM", "StateReason": REASON}
        project.aws.send(ApiCall("cloudwatch", "SetAlarmState", request))
        logger.info("-> %s is set off, and takes the update to %s back", ours[0], coming)
    elif wait:
        logger.info("-> no alarm of ours can take the update to %s back; it goes back when it has ended", coming)
    else:
        raise ConfigError(
            f"endpoint {name} is being updated to {coming}, and no alarm of ours watches it that could take it back: "
            "without --no-wait, `rollback` waits for the end and goes back then"
        )


def finish(project: Project, back: WayBack, follow: Callable[..., dict[str, Any]] = run.follow) -> None:
    """Wait until the endpoint serves the earlier configuration; then it scales as the configuration says.

    Raises:
        JobFailed: it does not.
    """
    description = follow(project.aws, run.ENDPOINT, back.name)
    if description["EndpointConfigName"] == back.previous:  # the update has ended before anything took it back
        project.send([_call(project, back.name, back.config_name)])
        description = follow(project.aws, run.ENDPOINT, back.name)
    serving = description["EndpointConfigName"]
    if serving != back.config_name:
        raise JobFailed(
            f"endpoint {back.name} serves {serving} and not {back.config_name}: "
            f"{description.get('FailureReason', 'no reason given')}"
        )
    set_tags(project, description["EndpointArn"], {PREVIOUS_TAG: back.previous})
    if back.name == endpoint_name(project.config):
        _scale(project, variants_of(description))


def _scale(project: Project, serving: list[str]) -> None:
    endpoint = project.config.endpoint
    missing = {variant.name for variant in endpoint_variants(endpoint)} - set(serving)
    if endpoint.scaling and missing:
        logger.warning("scaling stays as it is: variants %s are not there any more", ", ".join(sorted(missing)))
    elif not endpoint.components:
        attachments.scale(project)


def note(project: Project, back: WayBack) -> None:
    """Note the way forth again, without waiting."""
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=back.name)
    set_tags(project, description["EndpointArn"], {PREVIOUS_TAG: back.previous})

"""An endpoint's life: planned, created or updated, scaled, rolled back, deleted, and reaped when nobody needs it."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from launcher import attachments, run
from launcher.errors import ConfigError, JobFailed, TimedOut
from launcher.jobs import alarms, endpoint
from launcher.jobs.api import ApiCall, tag_list
from launcher.project import Project

logger = logging.getLogger(__name__)

PREVIOUS_TAG = "slipway:previous-config"  # what `rollback` goes back to
EXPIRES_TAG = "slipway:expires"
DELETE_SECONDS = 900  # instances are released within minutes
DELETE_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Step:
    """One part of a deployment."""

    action: str
    """`create`, `update`, `delete` or `keep`."""
    call: ApiCall

    def __str__(self) -> str:
        if self.call.operation == "PutMetricAlarm":
            return f"{self.action:<7}{'Alarm':<15}{self.call.request['AlarmName']}"
        if self.call.operation == "DeregisterScalableTarget":
            return f"{self.action:<7}{'Scaling':<15}{self.call.request['ResourceId']}"
        noun = self.call.operation.removeprefix("Create").removeprefix("Update").removeprefix("Delete")
        return f"{self.action:<7}{noun:<15}{self.call.request[f'{noun}Name']}"


@dataclass(frozen=True)
class Plan:
    """What a deployment has to do, compared with what there is."""

    name: str
    """The endpoint's."""
    config_name: str
    """The endpoint configuration it will have."""
    previous: str | None
    """The one it has now."""
    steps: tuple[Step, ...]


def plan(project: Project) -> Plan:
    """Compare the configuration with the account."""
    context = project.context()
    models = {
        name: project.served_model(context, model)
        for name, model in endpoint.models_of(project.config.endpoint).items()
    }
    *parts, create = endpoint.calls(project.config, context, models)
    steps = [Step("keep" if project.exists(call) else "create", call) for call in parts]
    name, wanted = create.request["EndpointName"], create.request["EndpointConfigName"]
    steps += [Step(action, call) for action, call in attachments.alarm_changes(project)]
    current = project.describe_or_none("Endpoint", name)
    if current and current["EndpointStatus"] != "Failed":
        steps += [Step("delete", call) for call in attachments.scaling_left_over(project, name, variants_of(current))]
    previous = current["EndpointConfigName"] if current else None
    if current is None:
        steps.append(Step("create", create))
    elif current["EndpointStatus"] == "Failed":  # it can be neither used nor updated
        steps += [Step("delete", run.ENDPOINT.stop_call(name)), Step("create", create)]
    elif previous == wanted:
        steps.append(Step("keep", create))
    else:
        steps.append(Step("update", endpoint.update_call(project.config, wanted, alarms.names(project.config))))
    return Plan(name, wanted, previous, tuple(steps))


def apply(project: Project, planned: Plan) -> None:
    """Send what has to be done."""
    for step in planned.steps:
        if step.call.operation == "DeregisterScalableTarget":
            attachments.end_scaling(project, planned.name, step.call)
        elif step.action == "delete":
            delete(project, planned.name)
        elif step.action != "keep":
            project.send([step.call])


def finish(project: Project, planned: Plan, follow: Callable[..., dict[str, Any]] = run.follow) -> None:
    """Wait until the endpoint serves the new configuration, then scale it and note how to go back.

    Raises:
        JobFailed: it could not start, or an alarm took the update back.
    """
    description = follow(project.aws, run.ENDPOINT, planned.name)
    serving = description["EndpointConfigName"]
    if serving != planned.config_name:
        reason = description.get("FailureReason", "an alarm went off while traffic was moved")
        raise JobFailed(
            f"the update of {planned.name} was rolled back to {serving}: {reason}; "
            f"`python -m launcher explain {planned.name}` says more"
        )
    _set_tags(project, description["EndpointArn"], planned)
    if project.config.endpoint.components:
        attachments.place_components(project, planned.name)
    attachments.scale(project)


def note(project: Project, planned: Plan) -> None:
    """Note how to go back, and when the endpoint expires, without waiting for it to serve."""
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=planned.name)
    _set_tags(project, description["EndpointArn"], planned)


def rollout_text(project: Project, planned: Plan) -> str:
    """How the traffic will move in an update, in one line; empty where nothing is updated, or at once."""
    rollout = project.config.endpoint.rollout
    if not rollout or all(step.action != "update" or "Endpoint" not in step.call.operation for step in planned.steps):
        return ""
    what = "instances" if rollout.type == "rolling" else "traffic"
    shares = ", ".join(f"{share}%" for share in rollout.shares())
    watched = alarms.names(project.config)
    text = f"{rollout.type}: {shares} of the {what}, {rollout.wait} s each"
    text += f"; old fleet stays {rollout.keep_old} s" if rollout.keep_old else ""
    return text + (f"; taken back by {', '.join(watched)}" if watched else "; nothing takes it back: no alarms")


def _set_tags(project: Project, arn: str, planned: Plan) -> None:
    tags = {}
    if planned.previous and planned.previous != planned.config_name:
        tags[PREVIOUS_TAG] = planned.previous
    if project.config.endpoint.ttl:
        expires = datetime.now(UTC) + timedelta(seconds=project.config.endpoint.ttl)
        tags[EXPIRES_TAG] = expires.isoformat(timespec="seconds")
    if tags:
        project.aws.send(ApiCall("sagemaker", "AddTags", {"ResourceArn": arn, "Tags": tag_list(tags)}))


def rollback(project: Project, name: str) -> Plan:
    """Go back to the configuration before the last update.

    Returns:
        What was sent; `finish` waits for it.

    Raises:
        ConfigError: there is none, or it has been deleted.
    """
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    target = tags_of(project, description["EndpointArn"]).get(PREVIOUS_TAG)
    if not target:
        raise ConfigError(f"endpoint {name} has not been updated by the launcher; there is nothing to go back to")
    if not project.describe_or_none("EndpointConfig", target):
        raise ConfigError(f"the configuration {target} has been deleted; deploy the model you want instead")
    section = project.config.endpoint.model_copy(update={"name": name})
    config = project.config.model_copy(update={"endpoint": section})
    if target == description["EndpointConfigName"]:
        raise ConfigError(f"endpoint {name} serves {target} already; its last update was taken back")
    step = Step("update", endpoint.return_call(config, target))
    project.send([step.call])
    return Plan(name, target, description["EndpointConfigName"], (step,))


def tags_of(project: Project, arn: str) -> dict[str, str]:
    """Tags of a resource by key."""
    reply = project.aws.call("sagemaker", "ListTags", ResourceArn=arn)
    return {tag["Key"]: tag["Value"] for tag in reply["Tags"]}


def delete(project: Project, name: str, wait: bool = True) -> None:
    """Delete an endpoint with its scaling, components, alarms and configuration; models stay, others may use them.

    Raises:
        AwsRefused: there is no such endpoint.
        TimedOut: it is still there after a while.
    """
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    attachments.stop_scaling(project, name, attachments.variant_ids(name, variants_of(description)))
    configuration = description["EndpointConfigName"]
    configured = project.describe_or_none("EndpointConfig", configuration)
    if attachments.hosts_components(project, configuration):
        for component in attachments.components_of(project, name):
            attachments.remove_component(project, component)
    attachments.remove_alarms(project, name)
    project.aws.send(run.ENDPOINT.stop_call(name))
    if configured:
        project.aws.send(ApiCall("sagemaker", "DeleteEndpointConfig", {"EndpointConfigName": configuration}))
    deadline = time.monotonic() + DELETE_SECONDS
    while wait and project.describe_or_none("Endpoint", name):
        if time.monotonic() > deadline:
            raise TimedOut(f"endpoint {name} is still being deleted after {DELETE_SECONDS} s; look again later")
        time.sleep(DELETE_POLL_SECONDS)


def variants_of(description: dict[str, Any]) -> list[str]:
    """Names of the variants in a DescribeEndpoint reply; one that is being created lists none yet."""
    return [variant["VariantName"] for variant in description.get("ProductionVariants", [])]


@dataclass(frozen=True)
class Candidate:
    """An endpoint that nobody seems to need."""

    name: str
    reason: str


def reapable(project: Project, idle: timedelta | None, now: datetime) -> list[Candidate]:
    """Endpoints past their `ttl`, and, if asked, those without an invocation for a while.

    Args:
        project: whose endpoints; the tag slipway:project tells them from others in the account.
        idle: how long without an invocation; None looks at `ttl` only.
        now: with a time zone.
    """
    found = []
    for item in project.aws.call("sagemaker", "ListEndpoints", SortBy="CreationTime")["Endpoints"]:
        tags = tags_of(project, item["EndpointArn"])
        if tags.get("slipway:project") != project.config.name:
            continue
        expires = tags.get(EXPIRES_TAG)
        if expires and datetime.fromisoformat(expires) < now:
            found.append(Candidate(item["EndpointName"], f"expired at {expires}"))
        elif idle and item["CreationTime"] < now - idle and not invocations(project, item["EndpointName"], idle, now):
            found.append(Candidate(item["EndpointName"], f"no invocation for {idle}"))
    return found


def idle_endpoints(project: Project, idle: timedelta, now: datetime) -> list[str]:
    """Endpoints of the whole account that are older than a while and have had no invocation in it."""
    found = project.aws.call("sagemaker", "ListEndpoints", SortBy="CreationTime", MaxResults=100)["Endpoints"]
    names = [item["EndpointName"] for item in found if item["CreationTime"] < now - idle]
    return [name for name in names if not invocations(project, name, idle, now)]


def invocations(project: Project, name: str, period: timedelta, now: datetime) -> float:
    """How often an endpoint has been invoked lately, all variants and inference components together."""
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    asked = [
        [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": variant["VariantName"]}]
        for variant in description.get("ProductionVariants", [])
    ]
    if attachments.hosts_components(project, description["EndpointConfigName"]):
        components = attachments.components_of(project, name)
        asked += [[{"Name": "InferenceComponentName", "Value": component}] for component in components]
    return sum(_invocations(project, dimensions, period, now) for dimensions in asked)


def _invocations(project: Project, dimensions: list[dict[str, str]], period: timedelta, now: datetime) -> float:
    reply = project.aws.call(
        "cloudwatch",
        "GetMetricStatistics",
        Namespace="AWS/SageMaker",
        MetricName="Invocations",
        Dimensions=dimensions,
        StartTime=now - period,
        EndTime=now,
        Period=max(60, int(period.total_seconds()) // 60 * 60),
        Statistics=["Sum"],
    )
    return float(sum(point["Sum"] for point in reply["Datapoints"]))

"""Create-or-update: the configuration compared with the account, as a plan that can be read, then done."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from launcher import attachments, run
from launcher.deployment.delete import delete, variants_of
from launcher.deployment.tags import PREVIOUS_TAG, expiry, set_tags
from launcher.errors import ConfigError, JobFailed
from launcher.jobs import alarms, endpoint
from launcher.jobs.api import ApiCall
from launcher.jobs.timeouts import timeouts
from launcher.jobs.update import update_call
from launcher.project import Project


@dataclass(frozen=True)
class Step:
    """One part of a deployment."""

    action: str
    """`create`, `update`, `delete` or `keep`."""
    call: ApiCall

    def __str__(self) -> str:
        shown = self.noun.removeprefix("Inference")
        return f"{self.action:<7}{shown:<15}{self.name}"

    @property
    def noun(self) -> str:
        """What it is about, such as `EndpointConfig`."""
        other = {"PutMetricAlarm": "Alarm", "DeregisterScalableTarget": "Scaling"}
        operation = self.call.operation
        return other.get(operation) or operation.removeprefix("Create").removeprefix("Update").removeprefix("Delete")

    @property
    def name(self) -> str:
        """Of what it is about."""
        member = "ResourceId" if self.noun == "Scaling" else f"{self.noun}Name"
        return str(self.call.request[member])


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
    notes: tuple[str, ...] = ()
    """What else to know of it: time limits and how the traffic will move."""
    etags: tuple[str, ...] = ()
    """Of the model archives."""

    @property
    def moves_traffic(self) -> bool:
        """Whether a running endpoint gets another configuration."""
        return any(step.call.operation == "UpdateEndpoint" for step in self.steps)

    @property
    def starts(self) -> bool:
        """Whether containers start at all."""
        return any(step.call.operation in STARTING and step.action != "keep" for step in self.steps)


STARTING = frozenset({"CreateEndpoint", "UpdateEndpoint"})


def plan(project: Project) -> Plan:
    """Compare the configuration with the account.

    Raises:
        ConfigError: the endpoint is being changed to something else, and SageMaker takes no other request meanwhile.
    """
    context = project.context()
    models = {
        name: project.served_model(context, model)
        for name, model in endpoint.models_of(project.config.endpoint).items()
    }
    *parts, create = endpoint.calls(project.config, context, models)
    steps = [Step("keep" if project.exists(call) else "create", call) for call in parts]
    name, wanted = create.request["EndpointName"], create.request["EndpointConfigName"]
    current = project.describe_or_none("Endpoint", name)
    endpoint_steps = _endpoint_steps(project, current, create)
    steps += [Step(action, call) for action, call in attachments.alarm_changes(project)]
    if current and current["EndpointStatus"] != "Failed":
        steps += [Step("delete", call) for call in attachments.scaling_left_over(project, name, variants_of(current))]
    hosted = [Step(action, call) for action, call in _component_changes(project, name, current)]
    first = [step for step in hosted if step.action == "delete"]
    later = [step for step in hosted if step.action != "delete"]  # they want the endpoint in service
    previous = current["EndpointConfigName"] if current else None
    planned = Plan(name, wanted, previous, (*steps, *first, *endpoint_steps, *later))
    limits = [] if project.config.endpoint.serverless else limit_lines(project, models)
    rollout = rollout_text(project) if planned.moves_traffic else ""
    notes = tuple(filter(None, (*limits, rollout)))
    etags = tuple(filter(None, (model.etag for model in models.values())))
    return replace(planned, notes=notes, etags=etags)


def _component_changes(project: Project, name: str, current: dict[str, Any] | None) -> list[tuple[str, ApiCall]]:
    hosts = current is not None and attachments.hosts_components(project, current["EndpointConfigName"])
    if not (hosts or project.config.endpoint.components):
        return []
    return attachments.component_changes(project, name, hosts)


def _endpoint_steps(project: Project, current: dict[str, Any] | None, create: ApiCall) -> list[Step]:
    name, wanted = create.request["EndpointName"], create.request["EndpointConfigName"]
    if current is None:
        return [Step("create", create)]
    status = current["EndpointStatus"]
    if status == "Failed":  # it can be neither used nor updated
        return [Step("delete", run.ENDPOINT.stop_call(name)), Step("create", create)]
    coming = current.get("PendingDeploymentSummary", {}).get("EndpointConfigName", current["EndpointConfigName"])
    if status in CHANGING and (status not in TOWARDS or coming != wanted):
        raise ConfigError(
            f"endpoint {name} is {status} ({coming}), and SageMaker takes no other change meanwhile; "
            f"wait with `python -m launcher attach {name}{project.aws.flags}`, then deploy"
        )
    if coming == wanted:
        return [Step("keep", create)]
    return [Step("update", update_call(project.config, wanted, alarms.names(project.config)))]


CHANGING = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})
TOWARDS = frozenset({"Creating", "Updating"})  # of CHANGING, those that end in what is coming


def limit_lines(project: Project, models: dict[str, Any]) -> list[str]:
    """The time limits of each model that are not SageMaker's own, or have been looked at, with their origin."""
    return [
        f"{name}: {line}" if len(models) > 1 else line
        for name, model in models.items()
        for line in timeouts(project.config.endpoint, model).lines()
    ]


def rollout_text(project: Project) -> str:
    """How the traffic will move in an update, in one line; empty where it moves at once."""
    rollout = project.config.endpoint.rollout
    if not rollout:
        return ""
    what = "instances" if rollout.type == "rolling" else "traffic"
    shares = ", ".join(f"{share}%" for share in rollout.shares())
    watched = alarms.names(project.config)
    text = f"{rollout.type}: {shares} of the {what}, {rollout.wait} s each"
    text += f"; old fleet stays {rollout.keep_old} s" if rollout.keep_old else ""
    return text + (f"; taken back by {', '.join(watched)}" if watched else "; nothing takes it back: no alarms")


def apply(project: Project, planned: Plan) -> None:
    """Send what has to be done."""
    for step in planned.steps:
        if step.call.operation == "DeregisterScalableTarget":
            attachments.end_scaling(project, planned.name, step.call)
        elif step.call.operation == "DeleteInferenceComponent":
            attachments.remove_component(project, step.name)
        elif step.action == "delete":
            delete(project, planned.name, kept=planned.config_name)
        elif step.action != "keep" and step.noun != "InferenceComponent":  # those wait for the endpoint
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
            f"the update of {planned.name} was rolled back to {serving}: {reason.rstrip('.')}; "
            f"`python -m launcher explain {planned.name}{project.aws.flags}` says more"
        )
    _note(project, planned, description["EndpointArn"])
    if project.config.endpoint.components:
        attachments.place_components(project, planned.name)
    attachments.scale(project)


def note(project: Project, planned: Plan) -> None:
    """Note how to go back, and when the endpoint expires, without waiting for it to serve."""
    description = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=planned.name)
    _note(project, planned, description["EndpointArn"])


def _note(project: Project, planned: Plan, arn: str) -> None:
    was_another = planned.previous and planned.previous != planned.config_name
    tags = {PREVIOUS_TAG: str(planned.previous)} if was_another else {}
    set_tags(project, arn, tags | expiry(project.config.endpoint.ttl))

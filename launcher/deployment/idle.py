"""Endpoints that nobody seems to need: past their time, or without a request for a while."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from launcher import attachments
from launcher.deployment.tags import EXPIRES_TAG, tags_of
from launcher.jobs.common import PROJECT_TAG
from launcher.project import Project


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
    for item in project.aws.listed("ListEndpoints", "Endpoints", SortBy="CreationTime"):
        tags = tags_of(project, item["EndpointArn"])
        if tags.get(PROJECT_TAG) != project.config.name or item["EndpointStatus"] == "Deleting":
            continue
        expires = tags.get(EXPIRES_TAG)
        if expires and datetime.fromisoformat(expires) < now:
            found.append(Candidate(item["EndpointName"], f"expired at {expires}"))
        elif idle and _is_idle(project, item, idle, now):
            found.append(Candidate(item["EndpointName"], f"no invocation for {idle}"))
    return found


def idle_endpoints(
    project: Project, listed: Iterable[dict[str, Any]], idle: timedelta, now: datetime
) -> list[dict[str, Any]]:
    """Of ListEndpoints' entries those that are older than a while and have had no invocation in it."""
    return [item for item in listed if _is_idle(project, item, idle, now)]


def _is_idle(project: Project, item: dict[str, Any], idle: timedelta, now: datetime) -> bool:
    return item["CreationTime"] < now - idle and not invocations(project, item["EndpointName"], idle, now)


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

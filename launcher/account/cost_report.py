"""What jobs and endpoints have cost, by the value of a tag, from what the service says about them.

`BillableTimeInSeconds` is wall-clock time of one instance (DescribeTrainingJob): times the number of instances is what
is billed. With spot it is already reduced, so that 1 - billable / training is the saving.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from launcher.account.cost import Prices

if TYPE_CHECKING:
    from launcher.aws import Aws

UNTAGGED = "(none)"


@dataclass(frozen=True)
class Billing:
    """What turns a description into money: prices, and the time that is looked at."""

    prices: Prices
    region: str
    since: datetime
    now: datetime

    def hourly(self, machines: Iterable[tuple[str, int]]) -> float | None:
        """US dollars per hour of instance types and counts; None where one price is unknown."""
        total = 0.0
        for instance_type, count in machines:
            price = self.prices.hourly(self.region, instance_type)
            if price is None:
                return None
            total += price * count
        return total


@dataclass(frozen=True)
class Spent:
    """One job or endpoint."""

    kind: str
    name: str
    tag: str
    """Value of the tag the report is made by."""
    instance_hours: float
    usd: float | None
    """None where a price is unknown."""
    saved_usd: float | None = None
    """By spot, against the on-demand price of the same seconds."""


@dataclass(frozen=True)
class Group:
    """Everything with the same value of the tag."""

    tag: str
    count: int
    instance_hours: float
    usd: float
    """Of those whose price is known."""
    saved_usd: float
    unknown: int
    """How many have no known price."""


def report(aws: "Aws", billing: Billing, tag: str) -> list[Spent]:
    """Every training and transform job made since a time, and every endpoint there is; the dearest first.

    Raises:
        AwsRefused: the service said no.
    """
    found = [*_trainings(aws, billing, tag), *_transforms(aws, billing, tag), *_endpoints(aws, billing, tag)]
    return sorted(found, key=lambda item: -(item.usd or 0))


def by_tag(spent: Iterable[Spent]) -> list[Group]:
    """Totals per value of the tag, the dearest first."""
    values: dict[str, list[Spent]] = {}
    for item in spent:
        values.setdefault(item.tag, []).append(item)
    groups = [
        Group(
            tag=value,
            count=len(items),
            instance_hours=sum(item.instance_hours for item in items),
            usd=sum(item.usd or 0 for item in items),
            saved_usd=sum(item.saved_usd or 0 for item in items),
            unknown=sum(item.usd is None for item in items),
        )
        for value, items in values.items()
    ]
    return sorted(groups, key=lambda group: -group.usd)


def training_spent(description: Mapping[str, Any], tag: str, billing: Billing) -> Spent:
    """What a training job has cost: billed seconds times its instances, and the warm pool it kept."""
    resources = description["ResourceConfig"]
    groups = resources.get("InstanceGroups") or [resources]
    machines = [
        (
            group.get("SelectedInstanceType") or group["InstanceType"],
            group.get("SelectedInstanceCount") or group["InstanceCount"],
        )
        for group in groups
        if "SelectedInstanceType" in group or "InstanceType" in group  # a job that waits for capacity has neither
    ]
    ran = _seconds(description.get("TrainingStartTime"), description.get("TrainingEndTime", billing.now))
    trained = description.get("TrainingTimeInSeconds", ran)
    billed = description.get("BillableTimeInSeconds", trained)
    kept = description.get("WarmPoolStatus", {}).get("ResourceRetainedBillableTimeInSeconds", 0)
    spent = _spent("training job", description["TrainingJobName"], tag, machines, (billed + kept) / 3600, billing)
    hourly = billing.hourly(machines)
    if not description.get("EnableManagedSpotTraining") or hourly is None:
        return spent
    return replace(spent, saved_usd=hourly * max(trained - billed, 0) / 3600)


def transform_spent(description: Mapping[str, Any], tag: str, billing: Billing) -> Spent:
    """What a transform job has cost: from its start to its end, or until now."""
    resources = description["TransformResources"]
    seconds = _seconds(description.get("TransformStartTime"), description.get("TransformEndTime", billing.now))
    machines = [(resources["InstanceType"], resources["InstanceCount"])]
    return _spent("transform job", description["TransformJobName"], tag, machines, seconds / 3600, billing)


def endpoint_spent(
    description: Mapping[str, Any], configuration: Mapping[str, Any], tag: str, billing: Billing
) -> Spent:
    """What an endpoint has cost since a time, as if it had always had the instances it has now."""
    variants = (*description.get("ProductionVariants", []), *description.get("ShadowProductionVariants", []))
    running = {item["VariantName"]: item.get("CurrentInstanceCount", 0) for item in variants}
    machines = [
        (item["InstanceType"], running.get(item["VariantName"], item.get("InitialInstanceCount", 0)))
        for item in (*configuration["ProductionVariants"], *configuration.get("ShadowProductionVariants", []))
        if "InstanceType" in item  # a serverless variant is billed by its requests, which no description counts
    ]
    hours = _seconds(max(description["CreationTime"], billing.since), billing.now) / 3600
    return _spent("endpoint", description["EndpointName"], tag, machines, hours, billing)


def _spent(  # the factors of one Spent
    kind: str, name: str, tag: str, machines: list[tuple[str, int]], hours: float, billing: Billing
) -> Spent:
    hourly = billing.hourly(machines)
    instances = sum(count for _, count in machines)
    return Spent(kind, name, tag, instances * hours, None if hourly is None else hourly * hours)


def _seconds(start: datetime | None, end: datetime) -> float:
    return max((end - start).total_seconds(), 0.0) if start else 0.0


def _trainings(aws: "Aws", billing: Billing, tag: str) -> Iterator[Spent]:
    for item in aws.listed("ListTrainingJobs", "TrainingJobSummaries", CreationTimeAfter=billing.since):
        found = aws.call("sagemaker", "DescribeTrainingJob", TrainingJobName=item["TrainingJobName"])
        yield training_spent(found, _tag(aws, item["TrainingJobArn"], tag), billing)


def _transforms(aws: "Aws", billing: Billing, tag: str) -> Iterator[Spent]:
    for item in aws.listed("ListTransformJobs", "TransformJobSummaries", CreationTimeAfter=billing.since):
        found = aws.call("sagemaker", "DescribeTransformJob", TransformJobName=item["TransformJobName"])
        yield transform_spent(found, _tag(aws, item["TransformJobArn"], tag), billing)


def _endpoints(aws: "Aws", billing: Billing, tag: str) -> Iterator[Spent]:
    for item in aws.listed("ListEndpoints", "Endpoints"):
        found = aws.call("sagemaker", "DescribeEndpoint", EndpointName=item["EndpointName"])
        name = found["EndpointConfigName"]
        configuration = aws.call("sagemaker", "DescribeEndpointConfig", EndpointConfigName=name)
        yield endpoint_spent(found, configuration, _tag(aws, item["EndpointArn"], tag), billing)


def _tag(aws: "Aws", arn: str, key: str) -> str:
    tags = aws.call("sagemaker", "ListTags", ResourceArn=arn)["Tags"]
    return next((tag["Value"] for tag in tags if tag["Key"] == key), UNTAGGED)

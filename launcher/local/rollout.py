"""DeploymentConfig of an update: which share of the traffic moves when, how long it bakes, and what takes it back.

Sources: the API's BlueGreenUpdatePolicy and RollingUpdatePolicy, and "Deployment guardrails" of the Developer Guide.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from launcher.local.errors import ValidationException

DEFAULT_TIMEOUT_SECONDS = 28800  # the longest MaximumExecutionTimeoutInSeconds; the API names no default
SIZES = {  # percent of the capacity that a step may have
    "CanarySize": (1, 50),  # "less than or equal to 50% of the variant's total instance count"
    "LinearStepSize": (10, 50),
    "MaximumBatchSize": (5, 50),
    "RollbackMaximumBatchSize": (1, 100),
}


@dataclass(frozen=True)
class RolloutPlan:
    """How an update goes, whatever its policy is called."""

    shares: tuple[float, ...] = (1.0,)
    """Of the traffic on the new fleet, after each step; the last one is 1."""
    wait_seconds: float = 0.0
    """How long each step bakes."""
    termination_wait_seconds: float = 0.0
    """Until the old fleet goes, after the last step."""
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    alarms: tuple[str, ...] = ()
    rolling: bool = False
    """Whether instances move with the traffic, instead of a whole new fleet beside the old one."""


def rollout_plan(config: Mapping[str, Any], instances: int) -> RolloutPlan:
    """The plan of a DeploymentConfig for a fleet of so many instances.

    Raises:
        ValidationException: what the policy may not say, in the API's terms.
    """
    alarms = tuple(item["AlarmName"] for item in config.get("AutoRollbackConfiguration", {}).get("Alarms", []))
    blue_green, rolling = config.get("BlueGreenUpdatePolicy"), config.get("RollingUpdatePolicy")
    if blue_green and rolling:
        raise ValidationException("Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy may be given.")
    if rolling:
        step = share_of(rolling, "MaximumBatchSize", instances)
        share_of(rolling, "RollbackMaximumBatchSize", instances)
        plan = RolloutPlan(
            steps_of(ceil(step * instances) / instances),
            rolling["WaitIntervalInSeconds"],
            0.0,
            rolling.get("MaximumExecutionTimeoutInSeconds", DEFAULT_TIMEOUT_SECONDS),
            alarms,
            rolling=True,
        )
    elif blue_green:
        routing = blue_green["TrafficRoutingConfiguration"]
        plan = RolloutPlan(
            blue_green_shares(routing, instances),
            routing["WaitIntervalInSeconds"],
            blue_green.get("TerminationWaitInSeconds", 0),
            blue_green.get("MaximumExecutionTimeoutInSeconds", DEFAULT_TIMEOUT_SECONDS),
            alarms,
        )
    else:
        return RolloutPlan(alarms=alarms)
    waits = plan.wait_seconds * len(plan.shares) + plan.termination_wait_seconds
    if waits >= plan.timeout_seconds:
        raise ValidationException(
            f"MaximumExecutionTimeoutInSeconds {plan.timeout_seconds:g} must be larger than the total waiting time of "
            f"{waits:g} s ({len(plan.shares)} x WaitIntervalInSeconds, and TerminationWaitInSeconds)"
        )
    return plan


def blue_green_shares(routing: Mapping[str, Any], instances: int) -> tuple[float, ...]:
    """Shares of a TrafficRoutingConfiguration; errors as `rollout_plan`."""
    kind = routing["Type"]
    size = {"CANARY": "CanarySize", "LINEAR": "LinearStepSize"}.get(kind)
    for name in ("CanarySize", "LinearStepSize"):
        if name in routing and name != size:
            raise ValidationException(f"{name} is not for TrafficRoutingConfiguration of Type {kind}")
    if size is None:
        return (1.0,)
    if size not in routing:
        raise ValidationException(f"TrafficRoutingConfiguration of Type {kind} needs {size}")
    share = share_of(routing, size, instances)
    return (share, 1.0) if kind == "CANARY" else steps_of(share)


def share_of(policy: Mapping[str, Any], member: str, instances: int) -> float:
    """A CapacitySize as a share of the fleet, 0..1; 1 where it is not given.

    Raises:
        ValidationException: more instances than there are, or outside the percentages that are allowed.
    """
    size = policy.get(member)
    if size is None:
        return 1.0
    low, high = SIZES[member]
    percent = size["Value"] if size["Type"] == "CAPACITY_PERCENT" else 100 * size["Value"] / instances
    is_whole_small_fleet = size["Type"] == "INSTANCE_COUNT" and size["Value"] == 1  # half an instance there is none
    if not low <= percent <= high and not is_whole_small_fleet:
        raise ValidationException(
            f"{member} of {size['Value']} {size['Type']} is {percent:g}% of {instances} instances; "
            f"it must be between {low}% and {high}%"
        )
    return min(1.0, percent / 100)


def steps_of(share: float) -> tuple[float, ...]:
    """Equal steps until all traffic has moved: 0.4 -> 0.4, 0.8, 1."""
    count = ceil(round(1 / share, 6))
    return tuple(min(1.0, round(share * step, 6)) for step in range(1, count)) + (1.0,)

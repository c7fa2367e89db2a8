"""Application Auto Scaling acts: moto stores targets, policies and scheduled actions, and here they change capacities.

Windows are the service's: target tracking adds when three minutes in a row are above the target, and takes away when
fifteen are well below; the high-resolution metrics have periods of ten seconds. Step policies are called by alarms.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import ceil
from typing import Any, Protocol

import moto.applicationautoscaling.models
import moto.applicationautoscaling.responses
from moto.backends import get_backend

from launcher.local.alarms import Alarms, metric_of
from launcher.local.buckets import ACCOUNT
from launcher.local.endpoint_metrics import NAMESPACE, Metric, metric_data, statistic
from launcher.local.schedule import is_due

logger = logging.getLogger(__name__)
INSTANCES = "sagemaker:variant:DesiredInstanceCount"
COPIES = "sagemaker:inference-component:DesiredCopyCount"
CONCURRENCY = "sagemaker:variant:DesiredProvisionedConcurrency"
OUT_PERIODS, IN_PERIODS = 3, 15  # of target tracking's own alarms
IN_SHARE = 0.9  # of the target, below which instances are taken away
DEFAULT_COOLDOWN = 300.0
PREDEFINED = {  # MetricName, statistic, period in seconds
    "SageMakerVariantInvocationsPerInstance": ("InvocationsPerInstance", "Sum", 60.0),
    "SageMakerVariantConcurrentRequestsPerModelHighResolution": ("ConcurrentRequestsPerModel", "Maximum", 10.0),
    "SageMakerInferenceComponentInvocationsPerCopy": ("InvocationsPerCopy", "Sum", 60.0),
    "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution": (
        "ConcurrentRequestsPerCopy",
        "Maximum",
        10.0,
    ),
}


class Capacities(Protocol):
    """What can be scaled."""

    def capacity(self, resource_id: str) -> int | None:
        """How many there should be now; None where nothing of that name can be changed at the moment."""

    def set_capacity(self, resource_id: str, count: int) -> None:
        """Ask for another number."""


@dataclass
class Memory:
    """What was done to one target, in epoch seconds."""

    since: float
    """Until when scheduled actions have been looked at."""
    last_out: float = 0.0
    last_in: float = 0.0


@dataclass
class Autoscaler:
    """Looks at every scalable target of SageMaker's."""

    region: str
    speed: float
    alarms: Alarms
    capacities: Capacities
    _memories: dict[str, Memory] = field(default_factory=dict)

    def act(self) -> None:
        """Do what is due now."""
        backend = get_backend("applicationautoscaling")[ACCOUNT][self.region]
        now = time.time()
        for dimension in (INSTANCES, COPIES):
            for target in list(backend.targets.get(dimension, {}).values()):
                memory = self._memories.setdefault(target.resource_id, Memory(now))
                self._run_schedule(backend, target, memory, now)
                current = self.capacities.capacity(target.resource_id)
                if current is not None:
                    self._adjust(backend, target, memory, current)

    def _run_schedule(self, backend: Any, target: Any, memory: Memory, now: float) -> None:
        after, memory.since = memory.since, now
        for action in list(backend.scheduled_actions):
            if action.resource_id != target.resource_id:
                continue
            try:
                due = is_due(action.schedule, action.timezone, action.creation_time, after, now)
            except (ValueError, KeyError) as error:
                logger.warning("scheduled action %s: %s", action.scheduled_action_name, error)
                continue
            if due:
                bounds = action.scalable_target_action
                logger.info("scheduled action %s: %s gets %s", action.scheduled_action_name, target.resource_id, bounds)
                target.update(bounds.get("MinCapacity"), bounds.get("MaxCapacity"), None)

    def _adjust(self, backend: Any, target: Any, memory: Memory, current: int) -> None:
        """Ask for what the bounds and policies say; the policy that wants most decides, as on the service."""
        policies = [item for item in list(backend.policies.values()) if item.resource_id == target.resource_id]
        wanted = [count for policy in policies if (count := self._wanted(policy, memory, current)) is not None]
        count = min(target.max_capacity, max(target.min_capacity, max(wanted, default=current)))
        if count == current:
            return
        logger.info("autoscaling: %s from %d to %d", target.resource_id, current, count)
        if count > current:
            memory.last_out = time.time()
        else:
            memory.last_in = time.time()
        self.capacities.set_capacity(target.resource_id, count)

    def _wanted(self, policy: Any, memory: Memory, current: int) -> int | None:
        if policy.step_scaling_policy_configuration is not None:
            return self._stepped(policy, memory, current)
        return self._tracked(policy, memory, current)

    def _is_cool(self, last: float, cooldown: float) -> bool:
        return time.time() - last >= cooldown / self.speed

    # --- target tracking --------------------------------------------------------------------------------------------

    def _tracked(self, policy: Any, memory: Memory, current: int) -> int | None:
        configuration = policy.target_tracking_scaling_policy_configuration
        found = tracked_metric(configuration, policy.resource_id)
        if found is None or current == 0:
            return None
        metric, name, seconds = found
        period, now = seconds / self.speed, time.time()
        data = metric_data(self.region, [metric], now - period * IN_PERIODS)[metric]
        values = [
            statistic(data, name, now - (index + 1) * period, now - index * period) for index in range(IN_PERIODS)
        ]
        target = float(configuration["TargetValue"])
        count = tracked_count(values, target, current)
        if count > current and self._is_cool(memory.last_out, configuration.get("ScaleOutCooldown", DEFAULT_COOLDOWN)):
            return count
        may_shrink = not configuration.get("DisableScaleIn", False)
        last = max(memory.last_in, memory.last_out)
        if (
            count < current
            and may_shrink
            and self._is_cool(last, configuration.get("ScaleInCooldown", DEFAULT_COOLDOWN))
        ):
            return count
        return current

    # --- steps ------------------------------------------------------------------------------------------------------

    def _stepped(self, policy: Any, memory: Memory, current: int) -> int | None:
        configuration = policy.step_scaling_policy_configuration
        for alarm in self.alarms.ringing_for(policy.policy_arn):
            change = step_change(configuration, self._breach(alarm), current)
            last = memory.last_out if change > 0 else max(memory.last_in, memory.last_out)
            if change and self._is_cool(last, configuration.get("Cooldown", DEFAULT_COOLDOWN)):
                return max(0, current + change)
        return None

    def _breach(self, alarm: Any) -> float:
        """How far the alarm's metric is from its threshold; 0 for an alarm that was set by hand."""
        period, now = float(alarm.period) / self.speed, time.time()
        metric = metric_of(alarm)
        data = metric_data(self.region, [metric], now - period)[metric]
        value = statistic(data, str(alarm.statistic or alarm.extended_statistic), now - period, now)
        return 0.0 if value is None else value - float(alarm.threshold)


def tracked_metric(configuration: Mapping[str, Any], resource_id: str) -> tuple[Metric, str, float] | None:
    """Metric, statistic and period of a target tracking policy; None for one that is not measured here."""
    customized = configuration.get("CustomizedMetricSpecification")
    if customized:
        return Metric.of(customized), customized.get("Statistic", "Average"), 60.0
    predefined = configuration.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType", "")
    if predefined not in PREDEFINED:
        return None
    name, statistic_name, period = PREDEFINED[predefined]
    kind, first, *rest = resource_id.split("/")
    dimensions = {("InferenceComponentName", first)}
    if kind == "endpoint":
        dimensions = {("EndpointName", first), ("VariantName", rest[-1])}
    return Metric(NAMESPACE, name, frozenset(dimensions)), statistic_name, period


def tracked_count(values: Sequence[float | None], target: float, current: int) -> int:
    """How many are needed to come to the target.

    Args:
        values: of the last periods, newest first; None where there are no data.
        target: per instance.
        current: how many there are.
    """
    newest = [value for value in values[:OUT_PERIODS] if value is not None]
    if len(newest) == OUT_PERIODS and min(newest) > target:
        return max(current + 1, ceil(current * newest[0] / target))
    known = [value for value in values if value is not None]
    if len(known) == len(values) and max(known) < target * IN_SHARE:
        return min(current - 1, ceil(current * max(known) / target))
    return current


def step_change(configuration: Mapping[str, Any], breach: float, current: int) -> int:
    """What the step for a breach of this size changes."""
    for step in configuration["StepAdjustments"]:
        low = float(step.get("MetricIntervalLowerBound", "-inf"))
        high = float(step.get("MetricIntervalUpperBound", "inf"))
        is_inside = low <= breach < high if breach >= 0 else low < breach <= high
        if not is_inside:
            continue
        adjustment = int(step["ScalingAdjustment"])
        kind = configuration.get("AdjustmentType", "ChangeInCapacity")
        if kind == "ExactCapacity":
            return adjustment - current
        if kind == "PercentChangeInCapacity":
            magnitude = max(int(configuration.get("MinAdjustmentMagnitude", 1)), abs(current * adjustment) // 100)
            return magnitude if adjustment > 0 else -magnitude
        return adjustment
    return 0


def teach_moto() -> None:
    """Let moto take SageMaker's other two scalable dimensions, which its list lacks."""
    known = {item.name: item.value for item in moto.applicationautoscaling.models.ScalableDimensionValueSet}
    missing = {"SAGEMAKER_COPIES": COPIES, "SAGEMAKER_CONCURRENCY": CONCURRENCY}
    if COPIES in known.values():
        return
    extended = Enum("ScalableDimensionValueSet", {**known, **missing})  # type: ignore[misc]
    for module in (moto.applicationautoscaling.models, moto.applicationautoscaling.responses):
        vars(module)["ScalableDimensionValueSet"] = extended

"""Application Auto Scaling: `scaling` sections as the requests that make it so, and unmake it.

A step policy is called by an alarm, and the alarm names the policy by an ARN that the service gives it. The requests
here have a placeholder in its place, `policy_arn(NAME)`; who sends them puts the ARN in.
"""

from dataclasses import dataclass
from typing import Any

from launcher.config import Config
from launcher.config.endpoint import Endpoint
from launcher.config.scaling import Scaling, ScalingStep
from launcher.jobs.api import ApiCall, without_none
from launcher.jobs.components import component_name
from launcher.jobs.endpoint import endpoint_name, endpoint_variants

SERVICE = "application-autoscaling"
INSTANCES = "sagemaker:variant:DesiredInstanceCount"
CONCURRENCY = "sagemaker:variant:DesiredProvisionedConcurrency"
COPIES = "sagemaker:inference-component:DesiredCopyCount"
NAMESPACE = "AWS/SageMaker"
BACKLOG_TARGET = 5.0  # queued requests per instance
UTILIZATION_TARGET = 0.7  # of a serverless variant's provisioned concurrency
DESCRIPTION = "made by the launcher for the scaling of endpoint {}"

# What an alarm looks at: the same quantity as the target of the mode; the service's own alarms do, too
Alarm = dict[str, Any]
BACKLOG: Alarm = {"MetricName": "ApproximateBacklogSizePerInstance", "Statistic": "Average", "Period": 60}
ALARMS: dict[tuple[str, str], Alarm] = {
    (INSTANCES, "invocations"): {"MetricName": "InvocationsPerInstance", "Statistic": "Sum", "Period": 60},
    (INSTANCES, "concurrency"): {"MetricName": "ConcurrentRequestsPerModel", "Statistic": "Maximum", "Period": 10},
    (COPIES, "invocations"): {"MetricName": "InvocationsPerCopy", "Statistic": "Sum", "Period": 60},
    (COPIES, "concurrency"): {"MetricName": "ConcurrentRequestsPerCopy", "Statistic": "Maximum", "Period": 10},
}
PREDEFINED = {
    (INSTANCES, "invocations"): "SageMakerVariantInvocationsPerInstance",
    (INSTANCES, "concurrency"): "SageMakerVariantConcurrentRequestsPerModelHighResolution",
    (COPIES, "invocations"): "SageMakerInferenceComponentInvocationsPerCopy",
    (COPIES, "concurrency"): "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution",
    (CONCURRENCY, "invocations"): "SageMakerVariantProvisionedConcurrencyUtilization",
}
# Without an instance the backlog per instance has no value, without a copy there are no invocations
WAKE_UP: dict[str, Alarm] = {
    INSTANCES: {"MetricName": "HasBacklogWithoutCapacity", "Statistic": "Average", "Period": 60},
    COPIES: {"MetricName": "NoCapacityInvocationFailures", "Statistic": "Maximum", "Period": 30},
}


@dataclass(frozen=True)
class Scalable:
    """What scales: a variant's instances or concurrency, or a component's copies."""

    endpoint: str
    label: str
    """Of policies, alarms and actions: they are named `<endpoint>-<label>-…`."""
    resource_id: str
    dimension: str
    dimensions: tuple[tuple[str, str], ...]
    """Of its metrics."""
    asynchronous: bool = False

    def target(self) -> dict[str, Any]:
        """The members by which every request names it."""
        return {
            "ServiceNamespace": "sagemaker",
            "ResourceId": self.resource_id,
            "ScalableDimension": self.dimension,
        }

    def name(self, ending: str) -> str:
        """Of a policy, an alarm or an action."""
        return f"{self.endpoint}-{self.label}-{ending}"


def calls(config: Config) -> list[ApiCall]:
    """The requests for every variant or component; sending them again changes nothing."""
    endpoint, name = config.endpoint, endpoint_name(config)
    if not endpoint.scaling:
        return [
            call
            for item in endpoint.components
            if item.scaling
            for call in _calls(component(config, item.name), item.scaling)
        ]
    return [
        call
        for item in endpoint_variants(endpoint)
        for call in _calls(_variant(endpoint, name, item.name), endpoint.scaling)
    ]


def policy_arn(policy_name: str) -> str:
    """Stands for a policy's ARN until the service has given it one."""
    return f"<PolicyARN of {policy_name}>"


def component(config: Config, name: str) -> Scalable:
    """A component's copies."""
    full_name = component_name(config, name)
    dimensions = (("InferenceComponentName", full_name),)
    return Scalable(endpoint_name(config), name, f"inference-component/{full_name}", COPIES, dimensions)


def _variant(endpoint: Endpoint, name: str, variant: str) -> Scalable:
    dimensions = [("EndpointName", name)]
    if not endpoint.asynchronous:
        dimensions.append(("VariantName", variant))
    dimension = CONCURRENCY if endpoint.serverless else INSTANCES
    resource = f"endpoint/{name}/variant/{variant}"
    return Scalable(name, variant, resource, dimension, tuple(dimensions), endpoint.asynchronous is not None)


def _calls(scalable: Scalable, scaling: Scaling) -> list[ApiCall]:
    limits = {"MinCapacity": scaling.min, "MaxCapacity": scaling.max}
    return [
        ApiCall(SERVICE, "RegisterScalableTarget", {**scalable.target(), **limits}),
        *_tracking(scalable, scaling),
        *_steps(scalable, scaling, [step for step in scaling.steps if step.above is not None]),
        *_steps(scalable, scaling, [step for step in scaling.steps if step.below is not None]),
        *(_wake_up(scalable, scaling) if scaling.min == 0 else []),
        *(_scheduled(scalable, scaling)),
    ]


# --- target tracking --------------------------------------------------------------------------------------------------


def _tracking(scalable: Scalable, scaling: Scaling) -> list[ApiCall]:
    target = scaling.target
    if target is None and not (scaling.steps or scaling.schedule):  # what the mode makes sensible
        target = BACKLOG_TARGET if scalable.asynchronous else UTILIZATION_TARGET
    if target is None:
        return []
    configuration = {
        "TargetValue": target,
        **_tracked_metric(scalable, scaling),
        "ScaleInCooldown": scaling.scale_in_cooldown,
        "ScaleOutCooldown": scaling.scale_out_cooldown,
        "DisableScaleIn": None if scaling.scale_in else True,
    }
    policy = {
        "PolicyName": scalable.name("target"),
        **scalable.target(),
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": without_none(configuration),
    }
    return [ApiCall(SERVICE, "PutScalingPolicy", policy)]


def _tracked_metric(scalable: Scalable, scaling: Scaling) -> dict[str, Any]:
    if scalable.asynchronous:
        metric = {
            "MetricName": BACKLOG["MetricName"],
            "Namespace": NAMESPACE,
            "Dimensions": _dimensions(scalable),
            "Statistic": BACKLOG["Statistic"],
        }
        return {"CustomizedMetricSpecification": metric}
    kind = "invocations" if scalable.dimension == CONCURRENCY else scaling.metric
    return {"PredefinedMetricSpecification": {"PredefinedMetricType": PREDEFINED[scalable.dimension, kind]}}


def _dimensions(scalable: Scalable) -> list[dict[str, str]]:
    return [{"Name": key, "Value": value} for key, value in scalable.dimensions]


# --- steps ------------------------------------------------------------------------------------------------------------


def _steps(scalable: Scalable, scaling: Scaling, steps: list[ScalingStep]) -> list[ApiCall]:
    """A policy and its alarm for the steps of one direction."""
    if not steps:
        return []
    is_out = steps[0].above is not None
    values = sorted((step.above if step.above is not None else step.below or 0.0, step.change) for step in steps)
    threshold = values[0][0] if is_out else values[-1][0]
    metric = BACKLOG if scalable.asynchronous else ALARMS[scalable.dimension, scaling.metric]
    comparison = "GreaterThanThreshold" if is_out else "LessThanThreshold"
    cooldown = scaling.scale_out_cooldown if is_out else scaling.scale_in_cooldown
    adjustments = _adjustments(values, threshold, is_out)
    alarm = {**metric, "Threshold": threshold, "ComparisonOperator": comparison}
    return _step_calls(scalable, "out" if is_out else "in", cooldown, adjustments, alarm)


def _adjustments(values: list[tuple[float, int]], threshold: float, is_out: bool) -> list[dict[str, Any]]:
    """StepAdjustments: bounds are distances from the alarm's threshold, and the outermost is open."""
    bounds = [value - threshold for value, _ in values]
    outer = [*bounds[1:], None] if is_out else [None, *bounds[:-1]]
    low, high = (bounds, outer) if is_out else (outer, bounds)
    return [
        without_none(
            {
                "MetricIntervalLowerBound": low[index],
                "MetricIntervalUpperBound": high[index],
                "ScalingAdjustment": change,
            }
        )
        for index, (_, change) in enumerate(values)
    ]


def _wake_up(scalable: Scalable, scaling: Scaling) -> list[ApiCall]:
    """A step policy that starts the first instance, or copy, when somebody waits for it."""
    if scalable.dimension not in WAKE_UP:
        return []
    adjustments = [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}]
    alarm = {
        **WAKE_UP[scalable.dimension],
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
    }
    return _step_calls(scalable, "wake", scaling.scale_out_cooldown, adjustments, alarm)


def _step_calls(
    scalable: Scalable, ending: str, cooldown: int, adjustments: list[dict[str, Any]], alarm: Alarm
) -> list[ApiCall]:
    name = scalable.name(ending)
    policy = {
        "PolicyName": name,
        **scalable.target(),
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": {
            "AdjustmentType": "ChangeInCapacity",
            "MetricAggregationType": "Average",
            "Cooldown": cooldown,
            "StepAdjustments": adjustments,
        },
    }
    request = {
        "AlarmName": name,
        "AlarmDescription": DESCRIPTION.format(scalable.endpoint),
        "Namespace": NAMESPACE,
        "Dimensions": _dimensions(scalable),
        **alarm,
        "EvaluationPeriods": 1,
        "TreatMissingData": "missing",
        "AlarmActions": [policy_arn(name)],
    }
    return [ApiCall(SERVICE, "PutScalingPolicy", policy), ApiCall("cloudwatch", "PutMetricAlarm", request)]


# --- schedule ---------------------------------------------------------------------------------------------------------


def _scheduled(scalable: Scalable, scaling: Scaling) -> list[ApiCall]:
    return [
        ApiCall(
            SERVICE,
            "PutScheduledAction",
            without_none(
                {
                    **scalable.target(),
                    "ScheduledActionName": scalable.name(item.name),
                    "Schedule": item.when,
                    "Timezone": item.timezone,
                    "ScalableTargetAction": without_none({"MinCapacity": item.min, "MaxCapacity": item.max}),
                }
            ),
        )
        for item in scaling.schedule
    ]


def removal_call(resource_id: str, dimension: str) -> ApiCall:
    """The request that ends scaling, policies and scheduled actions with it."""
    target = {"ServiceNamespace": "sagemaker", "ResourceId": resource_id, "ScalableDimension": dimension}
    return ApiCall(SERVICE, "DeregisterScalableTarget", target)

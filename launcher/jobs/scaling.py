"""Application Auto Scaling: an endpoint's `scaling` section as the requests that make it so, and unmake it."""

from typing import Any

from launcher.config import Config, Endpoint, Scaling
from launcher.jobs.api import ApiCall
from launcher.jobs.endpoint import endpoint_name, endpoint_variants

SERVICE = "application-autoscaling"
INSTANCES = "sagemaker:variant:DesiredInstanceCount"
CONCURRENCY = "sagemaker:variant:DesiredProvisionedConcurrency"
BACKLOG_TARGET = 5.0  # queued requests per instance
UTILIZATION_TARGET = 0.7  # of a serverless variant's provisioned concurrency
WAKE_PERIOD_SECONDS = 60


def calls(config: Config) -> list[ApiCall]:
    """The requests for every variant; sending them again changes nothing."""
    endpoint = config.endpoint
    if not endpoint.scaling:
        return []
    name = endpoint_name(config)
    return [
        call
        for variant in endpoint_variants(endpoint)
        for call in _variant_calls(endpoint, endpoint.scaling, name, variant.name)
    ]


def removal_call(endpoint: str, variant: str, dimension: str = INSTANCES) -> ApiCall:
    """The request that ends scaling; needed before an endpoint of the same name is made anew."""
    return ApiCall(SERVICE, "DeregisterScalableTarget", _target(endpoint, variant, dimension))


def _target(endpoint: str, variant: str, dimension: str) -> dict[str, Any]:
    return {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"endpoint/{endpoint}/variant/{variant}",
        "ScalableDimension": dimension,
    }


def _variant_calls(endpoint: Endpoint, scaling: Scaling, name: str, variant: str) -> list[ApiCall]:
    target = _target(name, variant, CONCURRENCY if endpoint.serverless else INSTANCES)
    limits = {"MinCapacity": scaling.min, "MaxCapacity": scaling.max}
    tracking = {
        **_metric(endpoint, scaling, name),
        "ScaleInCooldown": scaling.scale_in_cooldown,
        "ScaleOutCooldown": scaling.scale_out_cooldown,
    }
    policy = {
        "PolicyName": f"{name}-{variant}-target",
        **target,
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": tracking,
    }
    return [
        ApiCall(SERVICE, "RegisterScalableTarget", {**target, **limits}),
        ApiCall(SERVICE, "PutScalingPolicy", policy),
        *(_wake_calls(name, variant, target, scaling) if endpoint.asynchronous and scaling.min == 0 else []),
    ]


def _metric(endpoint: Endpoint, scaling: Scaling, name: str) -> dict[str, Any]:
    if endpoint.asynchronous:
        metric = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": "AWS/SageMaker",
            "Dimensions": [{"Name": "EndpointName", "Value": name}],
            "Statistic": "Average",
        }
        return {"TargetValue": scaling.target or BACKLOG_TARGET, "CustomizedMetricSpecification": metric}
    predefined = "SageMakerVariantProvisionedConcurrencyUtilization"
    target = scaling.target or UTILIZATION_TARGET
    if not endpoint.serverless:
        predefined = "SageMakerVariantInvocationsPerInstance"
    return {"TargetValue": target, "PredefinedMetricSpecification": {"PredefinedMetricType": predefined}}


def _wake_calls(name: str, variant: str, target: dict[str, Any], scaling: Scaling) -> list[ApiCall]:
    """With no instance the backlog per instance has no value: a step policy starts the first one.

    The alarm that triggers it needs the policy's ARN, which `wake_alarm` puts in once it is known.
    """
    step = {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Average",
        "Cooldown": scaling.scale_out_cooldown,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
    }
    policy = {
        "PolicyName": f"{name}-{variant}-wake",
        **target,
        "PolicyType": "StepScaling",
        "StepScalingPolicyConfiguration": step,
    }
    return [ApiCall(SERVICE, "PutScalingPolicy", policy)]


def wake_alarm(name: str, variant: str, policy_arn: str) -> ApiCall:
    """The alarm that starts the first instance of an asynchronous endpoint scaled to zero."""
    request = {
        "AlarmName": f"{name}-{variant}-wake",
        "MetricName": "HasBacklogWithoutCapacity",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": name}],
        "Statistic": "Average",
        "Period": WAKE_PERIOD_SECONDS,
        "EvaluationPeriods": 2,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
        "AlarmActions": [policy_arn],
    }
    return ApiCall("cloudwatch", "PutMetricAlarm", request)

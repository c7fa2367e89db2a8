"""PutMetricAlarm: the alarms that an endpoint's `rollout` section asks for."""

from typing import Any

from launcher.config import Config
from launcher.config.rollout import RolloutAlarm
from launcher.jobs.api import ApiCall, tag_list
from launcher.jobs.common import tags
from launcher.jobs.endpoint import endpoint_name, endpoint_variants

NAMESPACE = "AWS/SageMaker"
DESCRIPTION = "made by the launcher for endpoint {}"  # by which `delete` knows them from alarms of others
# What ModelLatency counts in, and what people do; the average of an error metric is a rate, 0..1
METRICS: dict[str, dict[str, Any]] = {
    "errors": {"MetricName": "Invocation5XXErrors", "Statistic": "Average"},
    "client_errors": {"MetricName": "Invocation4XXErrors", "Statistic": "Average"},
    "latency": {"MetricName": "ModelLatency", "ExtendedStatistic": "p90"},
}
PERCENT, MICROSECONDS_PER_MILLISECOND = 0.01, 1000.0


def calls(config: Config) -> list[ApiCall]:
    """One alarm for each variant and each entry of `rollout.alarms` that is more than a name."""
    rollout = config.endpoint.rollout
    if not rollout:
        return []
    return [
        _call(config, variant.name, alarm)
        for variant in endpoint_variants(config.endpoint)
        for alarm in rollout.alarms
        if alarm.metric and alarm.above
    ]


def names(config: Config) -> list[str]:
    """Every alarm that takes an update back: those named, and those made."""
    rollout = config.endpoint.rollout
    named = [alarm.name for alarm in rollout.alarms if alarm.name] if rollout else []
    return [*named, *(call.request["AlarmName"] for call in calls(config))]


def _call(config: Config, variant: str, alarm: RolloutAlarm) -> ApiCall:
    assert alarm.metric is not None
    assert alarm.above is not None
    endpoint = endpoint_name(config)
    scale = MICROSECONDS_PER_MILLISECOND if alarm.metric == "latency" else PERCENT
    request = {
        "AlarmName": f"{endpoint}-{variant}-{alarm.metric}",
        "AlarmDescription": DESCRIPTION.format(endpoint),
        "Namespace": NAMESPACE,
        **METRICS[alarm.metric],
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}],
        "Period": alarm.period,
        "EvaluationPeriods": alarm.periods,
        "Threshold": alarm.above * scale,
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",  # an endpoint that nobody asks is not a bad one
        "Tags": tag_list(tags(config)),
    }
    return ApiCall("cloudwatch", "PutMetricAlarm", request)

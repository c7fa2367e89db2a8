"""Autoscaling: when actions are due, what policies want, and instances that come and go."""

from datetime import UTC, datetime, timedelta

import pytest

from launcher.local.autoscaling import step_change, tracked_count, tracked_metric
from launcher.local.schedule import cron_matches, is_due

MONDAY = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("0 8 ? * MON-FRI *", True),
        ("0 8 ? * 2-6 *", True),
        ("0 8 * * SUN *", False),
        ("0/15 8 * NOV ? 2026", True),
        ("5/15 8 * * ? *", False),
        ("0 7,8 23 11 ? *", True),
        ("*/30 * * * ? 2025", False),
    ],
)
def test_cron_expressions_name_minutes(text, matches):
    assert cron_matches(text, MONDAY) == matches


@pytest.mark.parametrize(
    ("schedule", "timezone", "due"),
    [
        ("at(2026-11-23T08:00:00)", None, True),
        ("at(2026-11-23T09:00:00)", "Europe/Berlin", True),
        ("at(2026-11-23T09:00:00)", None, False),
        ("cron(0 9 ? * MON *)", "Europe/Berlin", True),
        ("cron(0 9 ? * MON *)", None, False),
        ("rate(12 hours)", None, True),
        ("rate(5 days)", None, False),
    ],
)
def test_scheduled_actions_are_due_in_their_time_zone(schedule, timezone, due):
    now = MONDAY.timestamp() + 5
    created = now - 12 * 3600 - 10
    assert is_due(schedule, timezone, created, now - 30, now) == due


def test_a_schedule_that_is_none_is_refused():
    with pytest.raises(ValueError, match="is neither at"):
        is_due("cron(1 2 3)", None, 0, 0, 60)


@pytest.mark.parametrize(
    ("values", "current", "count"),
    [
        ([30, 30, 30, *[0] * 12], 1, 3),  # three times the target
        ([30, 5, 30, *[0] * 12], 1, 1),  # not three in a row
        ([None] * 15, 2, 2),  # nothing known
        ([2] * 15, 4, 1),
        ([9.5] * 15, 4, 4),  # not well below
        ([2, *[None] * 14], 4, 4),  # nobody asked: that is no reason
    ],
)
def test_target_tracking_comes_to_its_target(values, current, count):
    assert tracked_count(values, 10, current) == count


def test_tracked_metrics_are_found_by_mode():
    kind = "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
    predefined = {"PredefinedMetricSpecification": {"PredefinedMetricType": kind}}
    metric, statistic, period = tracked_metric(predefined, "inference-component/a")
    assert (metric.name, statistic, period) == ("ConcurrentRequestsPerCopy", "Maximum", 10)
    assert metric.dimensions == {("InferenceComponentName", "a")}
    unknown = {"PredefinedMetricSpecification": {"PredefinedMetricType": "ALBRequestCountPerTarget"}}
    assert tracked_metric(unknown, "endpoint/e/variant/A") is None


STEPS = [
    {"MetricIntervalLowerBound": 0, "MetricIntervalUpperBound": 10, "ScalingAdjustment": 1},
    {"MetricIntervalLowerBound": 10, "ScalingAdjustment": 3},
    {"MetricIntervalUpperBound": 0, "ScalingAdjustment": -1},
]


@pytest.mark.parametrize(
    ("kind", "breach", "change"),
    [
        ("ChangeInCapacity", 0, 1),
        ("ChangeInCapacity", 10, 3),
        ("ChangeInCapacity", -5, -1),
        ("ExactCapacity", 10, -1),
        ("PercentChangeInCapacity", 10, 1),
    ],
)
def test_steps_change_by_how_far_a_metric_is_off(kind, breach, change):
    assert step_change({"AdjustmentType": kind, "StepAdjustments": STEPS}, breach, 4) == change


def test_a_breach_without_a_step_changes_nothing():
    assert step_change({"StepAdjustments": STEPS[1:2]}, 5, 4) == 0


# --- on a server ------------------------------------------------------------------------------------------------------

SPEED = 300
TARGET = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}


@pytest.fixture(scope="module")
def fast(tmp_path_factory, connect, server_environment):
    from launcher.local import client

    home = tmp_path_factory.mktemp("scaling")
    yield connect(client.up(home, server_environment(SLIPWAY_LOCAL_SPEED=str(SPEED))))
    client.down(home)


@pytest.fixture
def deployed(fast, unique):
    """Deploys an endpoint of one variant `A`, asynchronous where a bucket's folder is named."""
    names = []

    def deploy(folder=""):
        name = unique("scaled")
        container = {"Image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/any:1"}
        role = "arn:aws:iam::123456789012:role/SageMakerRole"
        fast.sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
        variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        output = {"S3OutputPath": f"s3://test-bucket/{folder}"}
        extra = {"AsyncInferenceConfig": {"OutputConfig": output}} if folder else {}
        fast.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **extra)
        fast.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        names.append(name)
        assert fast.wait_in_service(name)["EndpointStatus"] == "InService"
        return name

    yield deploy
    for name in names:
        fast.sagemaker.delete_endpoint(EndpointName=name)


def register(aws, name, **bounds):
    target = {**TARGET, "ResourceId": f"endpoint/{name}/variant/A"}
    aws.client("application-autoscaling").register_scalable_target(**target, **bounds)
    return target


def wait_for_instances(aws, name, count):
    def look():
        found = aws.sagemaker.describe_endpoint(EndpointName=name)
        return found["EndpointStatus"], found["ProductionVariants"][0]["CurrentInstanceCount"]

    return aws.wait_for(look, lambda seen: seen == ("InService", count))


def test_bounds_act_at_once_and_by_schedule(fast, deployed):
    name = deployed()
    target = register(fast, name, MinCapacity=2, MaxCapacity=3)
    wait_for_instances(fast, name, 2)
    soon = datetime.now(UTC) + timedelta(seconds=2)
    fast.client("application-autoscaling").put_scheduled_action(
        **target,
        ScheduledActionName="down",
        Schedule=f"at({soon:%Y-%m-%dT%H:%M:%S})",
        ScalableTargetAction={"MinCapacity": 1, "MaxCapacity": 1},
    )
    wait_for_instances(fast, name, 1)


def test_an_asynchronous_endpoint_sleeps_and_wakes_when_somebody_asks(fast, deployed):
    name = deployed("sleeping")
    target = register(fast, name, MinCapacity=0, MaxCapacity=2)
    scaling = fast.client("application-autoscaling")
    backlog = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": name}],
        "Statistic": "Average",
    }
    scaling.put_scaling_policy(
        **target,
        PolicyName="track",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={"TargetValue": 5.0, "CustomizedMetricSpecification": backlog},
    )
    arn = scaling.put_scaling_policy(
        **target,
        PolicyName="wake",
        PolicyType="StepScaling",
        StepScalingPolicyConfiguration={
            "AdjustmentType": "ChangeInCapacity",
            "StepAdjustments": [{"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}],
            "Cooldown": 60,
        },
    )["PolicyARN"]
    fast.client("cloudwatch").put_metric_alarm(
        AlarmName=f"{name}-wake",
        Namespace="AWS/SageMaker",
        MetricName="HasBacklogWithoutCapacity",
        Dimensions=[{"Name": "EndpointName", "Value": name}],
        Statistic="Average",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
        AlarmActions=[arn],
    )
    wait_for_instances(fast, name, 0)
    runtime = fast.client("sagemaker-runtime")
    answer = runtime.invoke_endpoint_async(EndpointName=name, Body=b"wake up")
    key = answer["OutputLocation"].removeprefix("s3://test-bucket/")
    fast.wait_for(lambda: fast.s3.list_objects_v2(Bucket="test-bucket", Prefix=key)["KeyCount"], bool)
    assert fast.get(answer["OutputLocation"]) == b"WAKE UP"

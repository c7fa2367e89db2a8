"""The plan of a DeploymentConfig, the state of alarms, and statistics: pure functions."""

import threading
import time
from types import SimpleNamespace

import pytest
from moto.cloudwatch.models import MetricAggregatedDatum, MetricDatum

from launcher.local.alarms import data_state
from launcher.local.clock import read_speed
from launcher.local.endpoint_metrics import (
    Datum,
    EndpointMetrics,
    Outcome,
    Source,
    invocation_values,
    rounded,
    statistic,
)
from launcher.local.errors import ValidationException
from launcher.local.rollout import rollout_plan
from launcher.local.serving import Invocation
from launcher.local.traffic import Traffic
from launcher.local.variant import Variant

NOW = 1_800_000_000.0
DIMENSIONS = (("EndpointName", "e"),)


def blue_green(kind, wait=60, **members):
    extra = {name: members.pop(name) for name in list(members) if name in ("CanarySize", "LinearStepSize")}
    routing = {"Type": kind, "WaitIntervalInSeconds": wait, **extra}
    return {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, **members}}


def percent(value):
    return {"Type": "CAPACITY_PERCENT", "Value": value}


def instances(value):
    return {"Type": "INSTANCE_COUNT", "Value": value}


@pytest.mark.parametrize(
    ("config", "count", "shares"),
    [
        ({}, 1, (1.0,)),
        (blue_green("ALL_AT_ONCE"), 1, (1.0,)),
        (blue_green("CANARY", CanarySize=percent(10)), 1, (0.1, 1.0)),
        (blue_green("CANARY", CanarySize=instances(1)), 4, (0.25, 1.0)),
        (blue_green("LINEAR", LinearStepSize=percent(40)), 1, (0.4, 0.8, 1.0)),
        (blue_green("LINEAR", LinearStepSize=percent(10)), 1, tuple(round(n / 10, 6) for n in range(1, 11))),
        (
            {"RollingUpdatePolicy": {"MaximumBatchSize": instances(1), "WaitIntervalInSeconds": 0}},
            3,
            (0.333333, 0.666667, 1.0),
        ),
        (
            {"RollingUpdatePolicy": {"MaximumBatchSize": percent(5), "WaitIntervalInSeconds": 0}},
            2,
            (0.5, 1.0),
        ),
    ],
)
def test_a_policy_moves_the_traffic_in_steps(config, count, shares):
    assert rollout_plan(config, count).shares == shares


def test_a_plan_knows_waits_alarms_and_its_time():
    config = blue_green(
        "CANARY",
        CanarySize=percent(10),
        TerminationWaitInSeconds=30,
        MaximumExecutionTimeoutInSeconds=600,
    )
    config["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": "a"}, {"AlarmName": "b"}]}
    plan = rollout_plan(config, 1)
    assert (plan.wait_seconds, plan.termination_wait_seconds, plan.timeout_seconds) == (60, 30, 600)
    assert plan.alarms == ("a", "b")
    assert not plan.rolling


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (blue_green("CANARY"), "Type CANARY needs CanarySize"),
        (blue_green("LINEAR", CanarySize=percent(10)), "CanarySize is not for .* Type LINEAR"),
        (blue_green("CANARY", CanarySize=percent(60)), "60% of 4 instances; it must be between 1% and 50%"),
        (blue_green("LINEAR", LinearStepSize=percent(5)), "must be between 10% and 50%"),
        (blue_green("CANARY", CanarySize=instances(3)), "75% of 4 instances"),
        (
            blue_green("CANARY", wait=300, CanarySize=percent(10), MaximumExecutionTimeoutInSeconds=600),
            "must be larger than the total waiting time of 600 s",
        ),
        (
            blue_green("ALL_AT_ONCE") | {"RollingUpdatePolicy": {"MaximumBatchSize": percent(50)}},
            "Only one of BlueGreenUpdatePolicy and RollingUpdatePolicy",
        ),
    ],
)
def test_a_policy_that_cannot_be_kept_is_refused(config, message):
    with pytest.raises(ValidationException, match=message):
        rollout_plan(config, 4)


def test_the_speed_is_a_number_of_at_least_one():
    assert (read_speed(None), read_speed(""), read_speed("60")) == (1, 1, 60)
    for text in ("0.5", "fast", "nan"):
        with pytest.raises(SystemExit, match="SLIPWAY_LOCAL_SPEED"):
            read_speed(text)


def test_requests_are_shared_as_the_routes_say():
    traffic = Traffic("e")

    def deployment(*sessions):
        return SimpleNamespace(find=lambda name: None, has_session=lambda session: session in sessions)

    new, old = deployment(), deployment("s")
    traffic.move((0.3, new), (0.7, old))
    chosen = [traffic.choose(Invocation(b"", {}, 1), None) for _ in range(2000)]
    assert 0.25 < sum(item is new for item in chosen) / 2000 < 0.35
    traffic.move((1.0, new), (0.0, old))
    assert {id(traffic.choose(Invocation(b"", {}, 1), None)) for _ in range(50)} == {id(new)}
    traffic.move((0.9, new), (0.1, old))
    held = Invocation(b"", {}, 1, session_id="s")
    assert all(traffic.choose(held, None) is old for _ in range(50))


@pytest.mark.parametrize(("asked", "shares"), [(3, (1 / 3, 2 / 3, 1.0)), (2, (0.5, 1.0)), (9, (0.111111, 1.0))])
def test_a_share_of_a_fleet_is_whole_instances_and_no_more_than_this_machine_may_have(asked, shares):
    platform = SimpleNamespace(max_instances=4)
    definition = {"VariantName": "A", "ModelName": "m", "InitialInstanceCount": asked}
    variant = Variant(platform, EndpointMetrics("us-east-1"), Source("e", "A", "c"), definition, threading.Event())
    counts = []
    variant.fleet.scale_to = counts.append
    for share in shares:
        variant.resize(round(share, 6))
    assert counts == [1, *range(2, len(shares)), min(asked, 4)]


# --- alarms -----------------------------------------------------------------------------------------------------------


def alarm(**changes):
    members = {
        "period": 60,
        "evaluation_periods": 1,
        "datapoints_to_alarm": None,
        "statistic": "Average",
        "extended_statistic": None,
        "treat_missing_data": None,
        "comparison_operator": "GreaterThanThreshold",
        "threshold": 0.5,
        "state_value": "OK",
    }
    return SimpleNamespace(**(members | changes))


def datum(seconds_ago, *values):
    made = Datum("m", DIMENSIONS, NOW - seconds_ago, "Count")
    for value in values:
        made.add(value)
    return made


@pytest.mark.parametrize(
    ("changes", "data", "state"),
    [
        ({}, [datum(10, 1, 1, 0)], "ALARM"),
        ({}, [datum(10, 1, 0)], "OK"),
        ({}, [], "INSUFFICIENT_DATA"),
        ({"treat_missing_data": "notBreaching"}, [], "OK"),
        ({"treat_missing_data": "breaching"}, [], "ALARM"),
        ({"treat_missing_data": "ignore", "state_value": "ALARM"}, [], "ALARM"),
        ({"evaluation_periods": 2}, [datum(10, 1), datum(70, 0)], "OK"),
        ({"evaluation_periods": 2, "datapoints_to_alarm": 1}, [datum(10, 1), datum(70, 0)], "ALARM"),
        ({"evaluation_periods": 2}, [datum(10, 1), datum(70, 1)], "ALARM"),
        ({"evaluation_periods": 2}, [datum(10, 1)], "ALARM"),  # nothing says otherwise
        ({"evaluation_periods": 2}, [datum(10, 1), datum(130, 0)], "OK"),  # what is missing is made up for from before
        ({"comparison_operator": "LessThanThreshold", "statistic": "Sum"}, [datum(10, 0, 0)], "ALARM"),
        ({"statistic": None, "extended_statistic": "p90", "threshold": 7}, [datum(10, *range(10))], "ALARM"),
        ({"statistic": None, "extended_statistic": "p50", "threshold": 7}, [datum(10, *range(10))], "OK"),
    ],
)
def test_an_alarm_follows_its_data(changes, data, state):
    assert data_state(alarm(**changes), data, NOW, 1.0) == state


def test_at_a_higher_speed_periods_are_shorter():
    assert data_state(alarm(), [datum(10, 1)], NOW, 60.0) == "INSUFFICIENT_DATA"
    assert data_state(alarm(), [datum(0.5, 1)], NOW, 60.0) == "ALARM"


def test_statistics_read_whatever_lies_in_cloudwatch():
    at = datum(10).timestamp
    mixed = [
        datum(10, 1, 2),
        MetricDatum("n", "m", 3.0, [], at),
        MetricAggregatedDatum("n", "m", 0.0, 9.0, 2.0, 8.0, [], at),
    ]
    wanted = {"Sum": 14, "Average": 2.8, "Minimum": 0, "Maximum": 9, "SampleCount": 5, "p100": 4}
    assert {name: statistic(mixed, name, NOW - 60, NOW) for name in wanted} == pytest.approx(wanted)
    assert statistic(mixed, "Sum", NOW - 5, NOW) is None
    with pytest.raises(ValueError, match="no statistic 'TM'"):
        statistic(mixed, "TM", NOW - 60, NOW)


def test_percentiles_are_taken_from_two_digits():
    assert [rounded(value) for value in (0, 1234.5, 0.0456, 9.96)] == [0, 1200, 0.046, 10]


def test_an_invocation_has_the_services_metrics():
    source = Source("e", "A", "c")
    values = {name: value for name, value, _ in invocation_values(source, Outcome(503, 0.002, 0.001, 2))}
    assert values == pytest.approx(
        {
            "Invocations": 1,
            "InvocationsPerInstance": 0.5,
            "Invocation4XXErrors": 0,
            "Invocation5XXErrors": 1,
            "InvocationModelErrors": 1,
            "ModelLatency": 2000,
            "OverheadLatency": 1000,
        }
    )
    assert source.dimensions()[0] == (("EndpointName", "e"), ("VariantName", "A"))


def test_the_heartbeat_survives_what_it_calls():
    from launcher.local.clock import Heartbeat

    beats = []

    def fail():
        beats.append(1)
        raise ZeroDivisionError

    heartbeat = Heartbeat(0.01, [fail])
    heartbeat.start()
    deadline = time.monotonic() + 20
    while len(beats) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    heartbeat.stop()

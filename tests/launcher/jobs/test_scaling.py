"""A scaling section becomes Application Auto Scaling's requests, with the metric right for each mode."""

import pytest

from launcher.errors import ConfigError
from launcher.jobs import scaling
from launcher.validate import problems

MODES = {
    "realtime": ["endpoint.scaling={min: 1, max: 4, target: 120}"],
    "asynchronous": ["endpoint.asynchronous=true", "endpoint.scaling={min: 0, max: 4}"],
    "serverless": ["endpoint.serverless={provisioned_concurrency: 1}", "endpoint.scaling={max: 4}"],
    "concurrency": [
        "endpoint.scaling={max: 4, target: 5, metric: concurrency, scale_in: false}",
    ],
    "steps": [
        "endpoint.scaling={max: 9, steps: [{above: 100, change: 1}, {above: 300, change: 3}, {below: 10, change: -1},"
        " {below: 2, change: -2}]}",
    ],
    "steps_asynchronous": [
        "endpoint.asynchronous=true",
        "endpoint.scaling={min: 0, max: 4, steps: [{above: 5, change: 2}, {below: 1, change: -1}]}",
    ],
    "schedule": [
        "endpoint.scaling={max: 4, schedule: [{name: morning, when: 'cron(0 8 ? * MON-FRI *)',"
        " timezone: Europe/Berlin, min: 2}, {name: night, when: 'at(2026-12-24T18:00:00)', min: 1, max: 1}]}",
    ],
    "components": [
        "endpoint.components=[{name: a, model: s3://b/1, scaling: {min: 0, max: 4, target: 10, metric: concurrency}},"
        " {name: b, model: s3://b/2}]",
    ],
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_makes_valid_requests(mode, config, golden):
    calls = scaling.calls(config(*MODES[mode]))
    assert [problem for call in calls for problem in problems(call)] == []
    golden(f"scaling_{mode}", [{"operation": call.operation, "request": call.request} for call in calls])


def test_without_the_section_nothing_is_sent(config):
    assert scaling.calls(config()) == []


def test_every_variant_scales(config):
    variants = "endpoint.variants=[{name: a, model: s3://b/1}, {name: b, model: s3://b/2}]"
    calls = scaling.calls(config(variants, "endpoint.scaling={max: 4, target: 9}"))
    assert {call.request["ResourceId"].rpartition("/")[2] for call in calls} == {"a", "b"}


def test_scaling_ends_with_a_valid_request():
    assert problems(scaling.removal_call("endpoint/digits/variant/main", scaling.INSTANCES)) == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{max: 2, steps: [{change: 1}]}", "either above or below"),
        ("{max: 2, steps: [{above: 5, change: -1}]}", "a step above a value adds"),
        ("{max: 2, steps: [{below: 5, change: 0}]}", "takes away"),
        ("{max: 2, schedule: [{name: a, when: 'rate(1 hour)'}]}", "needs min, max or both"),
        ("{max: 2, schedule: [{name: a, when: 'rate(1 hour)', min: 2, max: 1}]}", "min=2 is larger than max=1"),
        ("{max: 2, schedule: [{name: a, when: daily, min: 1}]}", "write it like cron"),
        (
            "{max: 2, schedule: [{name: a, when: at(x), min: 1}, {name: a, when: at(y), min: 2}]}",
            "two entries of one name",
        ),
    ],
)
def test_steps_and_schedules_that_make_no_sense_are_refused(section, message, config):
    with pytest.raises(ConfigError, match=message):
        config(f"endpoint.scaling={section}")


def test_serverless_endpoints_have_no_steps(config):
    with pytest.raises(ConfigError, match="scaling.steps is not for serverless endpoints"):
        config("endpoint.serverless=true", "endpoint.scaling={max: 2, steps: [{above: 1, change: 1}]}")

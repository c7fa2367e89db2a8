"""A scaling section becomes Application Auto Scaling's requests, with the metric right for each mode."""

import pytest

from launcher.jobs import scaling
from launcher.validate import problems

MODES = {
    "realtime": ["endpoint.scaling={min: 1, max: 4, target: 120}"],
    "asynchronous": ["endpoint.asynchronous=true", "endpoint.scaling={min: 0, max: 4}"],
    "serverless": ["endpoint.serverless={provisioned_concurrency: 1}", "endpoint.scaling={max: 4}"],
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


def test_scaling_ends_and_wakes_with_valid_requests():
    assert problems(scaling.removal_call("digits", "main")) == []
    assert problems(scaling.wake_alarm("digits", "main", "arn:aws:autoscaling:us-east-1:1:policy")) == []

"""The alarms of a rollout: made for each variant, or named."""

from launcher.jobs import alarms, update
from launcher.validate import problems

ROLLOUT = """
name: digits
endpoint:
  variants: [{name: a, model: s3://b/1}, {name: b, model: s3://b/2}]
  rollout:
    type: canary
    alarms: [theirs, {metric: errors, above: 5}, {metric: latency, above: 200, period: 30, periods: 3}]
"""


def test_alarms_are_made_for_each_variant_and_named_ones_are_left_alone(config, golden):
    made = config(yaml=ROLLOUT)
    calls = alarms.calls(made)
    assert [problem for call in calls for problem in problems(call)] == []
    golden("alarms", [call.request for call in calls])
    assert alarms.names(made) == [
        "theirs",
        "digits-a-errors",
        "digits-a-latency",
        "digits-b-errors",
        "digits-b-latency",
    ]


def test_an_update_names_all_of_them(config):
    made = config(yaml=ROLLOUT)
    call = update.update_call(made, "digits-2", alarms.names(made))
    assert problems(call) == []
    assert len(call.request["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]) == 5


def test_without_a_rollout_there_are_none(config):
    assert alarms.calls(config()) == []
    assert alarms.names(config()) == []

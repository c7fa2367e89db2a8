"""Alarms, inference components and scaling of an endpoint: made, kept, changed and removed."""

import pytest

from launcher import attachments
from launcher.deployment import deploy
from launcher.errors import ConfigError, JobFailed, TimedOut

ROLE = "name: digits\nrole: arn:aws:iam::123456789012:role/jobs\n"
ALARMS = ROLE + "endpoint: {rollout: {type: canary, alarms: [theirs, {metric: errors, above: 5}]}}\n"
COMPONENTS = ROLE + "endpoint: {components: [{name: a, model: s3://bucket/1, copies: 2}]}\n"
MISSING = {"Error": {"Code": "ValidationException", "Message": "Could not find"}}
ARN = "arn:aws:sagemaker:us-east-1:123456789012:inference-component/digits-a"


def test_an_alarm_is_made_once_changed_when_it_differs_and_removed_with_the_endpoint(project, aws):
    made = project(yaml=ALARMS)
    ((action, call),) = attachments.alarm_changes(made)
    assert action == "create"
    made.send([call])
    assert [change for change, _ in attachments.alarm_changes(made)] == ["keep"]
    other = project(yaml=ALARMS.replace("above: 5", "above: 7"))
    assert [change for change, _ in attachments.alarm_changes(other)] == ["update"]
    aws.call("cloudwatch", "PutMetricAlarm", **{**call.request, "AlarmName": "digits-mine", "AlarmDescription": "mine"})
    attachments.remove_alarms(made, "digits")
    left = aws.call("cloudwatch", "DescribeAlarms")["MetricAlarms"]
    assert [item["AlarmName"] for item in left] == ["digits-mine"]


def test_a_caller_who_may_not_see_alarms_is_told(project, canned, caplog):
    canned("DescribeAlarms", {"Error": {"Code": "AccessDenied", "Message": "no"}}, service="cloudwatch")
    attachments.remove_alarms(project(yaml=ROLE), "digits")
    assert "alarms of digits stay as they are" in caplog.text


def test_a_step_policys_alarm_gets_its_arn_and_policies_of_before_go(project, aws):
    steps = "endpoint.scaling={max: 4, steps: [{above: 9, change: 1}]}"
    attachments.scale(project("endpoint.scaling={max: 4, target: 9}", yaml=ROLE))
    attachments.scale(project(steps, yaml=ROLE))
    policies = aws.call("application-autoscaling", "DescribeScalingPolicies", ServiceNamespace="sagemaker")
    (policy,) = policies["ScalingPolicies"]
    assert policy["PolicyName"] == "digits-main-out"
    (alarm,) = aws.call("cloudwatch", "DescribeAlarms", AlarmNames=["digits-main-out"])["MetricAlarms"]
    assert alarm["AlarmActions"] == [policy["PolicyARN"]]


def described(status="InService", copies=2, **members):
    return {
        "InferenceComponentName": "digits-a",
        "InferenceComponentArn": ARN,
        "InferenceComponentStatus": status,
        "Specification": members,
        "RuntimeConfig": {"DesiredCopyCount": copies, "CurrentCopyCount": copies},
    }


@pytest.fixture
def wanted(project, aws):
    aws.call("s3", "CreateBucket", Bucket="bucket")
    aws.call("s3", "PutObject", Bucket="bucket", Key="1", Body=b"archive")
    made = project(yaml=COMPONENTS)
    from launcher.jobs import components

    models = {"a": made.served_model(made.context(), "s3://bucket/1")}
    return made, components.calls(made.config, made.context(), models)[0].request["Specification"]


def changes(sent):
    return [(name, body) for name, body in sent if name.startswith(("Create", "Update", "Delete"))]


@pytest.fixture
def listed(canned):
    def answer(*names):
        items = [{"InferenceComponentName": name} for name in names]
        canned("ListInferenceComponents", {"InferenceComponents": items})

    return answer


def test_a_component_is_made_and_another_of_before_is_deleted(wanted, canned, listed, sent):
    made, specification = wanted
    listed("digits-old")
    # the deleted one is asked for once, then the missing one, then the one that was made
    canned("DescribeInferenceComponent", MISSING, MISSING, described(**specification))
    for operation in ("CreateInferenceComponent", "DeleteInferenceComponent"):
        canned(operation, {"InferenceComponentArn": ARN})
    attachments.place_components(made, "digits")
    assert [name for name, _ in changes(sent)] == ["DeleteInferenceComponent", "CreateInferenceComponent"]


def test_a_component_that_is_right_is_kept(wanted, canned, listed, sent):
    made, specification = wanted
    listed("digits-a")
    canned("DescribeInferenceComponent", described(**specification))
    attachments.place_components(made, "digits")
    assert changes(sent) == []


@pytest.mark.parametrize("what", ["copies", "model"])
def test_a_component_that_differs_is_updated(wanted, canned, listed, sent, what):
    made, specification = wanted
    listed("digits-a")
    there = described(copies=1, **specification) if what == "copies" else described(ModelName="old")
    canned("DescribeInferenceComponent", there, described(**specification))
    canned("UpdateInferenceComponent", {"InferenceComponentArn": ARN})
    attachments.place_components(made, "digits")
    ((name, body),) = changes(sent)
    assert name == "UpdateInferenceComponent"
    assert ("Specification" in body) == (what == "model")


def test_a_component_that_fails_is_told(wanted, canned, listed):
    made, specification = wanted
    listed("digits-a")
    canned("DescribeInferenceComponent", described(**specification), described("Failed") | {"FailureReason": "no room"})
    with pytest.raises(JobFailed, match="inference component digits-a failed: no room"):
        attachments.place_components(made, "digits")


def test_a_component_that_never_ends_is_told(wanted, canned, listed, monkeypatch):
    made, specification = wanted
    listed("digits-a")
    monkeypatch.setattr(attachments, "COMPONENT_SECONDS", -1.0)
    canned("DescribeInferenceComponent", described("Creating", **specification))
    with pytest.raises(TimedOut, match="digits-a is not in service"):
        attachments.place_components(made, "digits")
    canned("DeleteInferenceComponent", {})
    with pytest.raises(TimedOut, match="digits-a is still being deleted"):
        attachments.remove_component(made, "digits-a")


def test_the_plan_says_how_the_traffic_will_move(project):
    text = deploy.rollout_text(project(yaml=ALARMS))
    assert text == "canary: 10%, 100% of the traffic, 600 s each; taken back by theirs, digits-main-errors"
    rolling = project("endpoint.rollout={type: rolling, percent: 50}", yaml=ROLE)
    expected = "rolling: 50%, 100% of the instances, 600 s each; nothing takes it back: no alarms"
    assert deploy.rollout_text(rolling) == expected
    assert deploy.rollout_text(project(yaml=ROLE)) == ""


def test_invoke_knows_the_projects_components(config):
    from types import SimpleNamespace

    from launcher.commands.invoke import component_asked

    several = "{name: a, model: s3://b/1}, {name: b, model: s3://b/1}"
    settings = SimpleNamespace(config=config(f"endpoint.components=[{several}]"))
    assert component_asked(settings, "digits", "a") == "digits-a"
    assert component_asked(settings, "theirs", "their-component") == "their-component"
    with pytest.raises(ConfigError, match="say which: --component a or b"):
        component_asked(settings, "digits", None)
    one = SimpleNamespace(config=config("endpoint.components=[{name: a, model: s3://b/1}]"))
    assert component_asked(one, "digits", None) == "digits-a"
    assert component_asked(SimpleNamespace(config=config()), "digits", None) is None

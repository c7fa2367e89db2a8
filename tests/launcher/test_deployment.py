"""An endpoint is created or updated to what the configuration says, scaled, rolled back, deleted and reaped."""

import tarfile
from datetime import UTC, datetime, timedelta

import pytest

from launcher import attachments, cli, deployment, run
from launcher.errors import ConfigError, JobFailed, TimedOut
from launcher.jobs.api import ApiCall

NOW = datetime.now(UTC)
MISSING = {"Error": {"Code": "ValidationException", "Message": "Could not find"}}
ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"
YAML = "name: digits\nrole: arn:aws:iam::123456789012:role/jobs\nendpoint: {instance_type: ml.m5.large}\n"


@pytest.fixture
def model(tmp_path):
    (tmp_path / "weights").write_text("w")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "weights", "weights")
    return "endpoint.model=./model.tar.gz"


def described(**members):
    return {
        "EndpointName": "digits",
        "EndpointConfigName": "old",
        "EndpointStatus": "InService",
        "EndpointArn": ARN,
        "LastModifiedTime": NOW,
        "ProductionVariants": [{"VariantName": "main"}],
        **members,
    }


def deploy(project):
    planned = deployment.plan(project)
    deployment.apply(project, planned)
    deployment.finish(project, planned)
    return planned


def test_a_step_reads_as_a_line():
    step = deployment.Step("create", ApiCall("sagemaker", "CreateModel", {"ModelName": "m"}))
    assert str(step).split() == ["create", "Model", "m"]


def test_the_first_deployment_creates_and_the_second_keeps(project, model):
    made = project(model, yaml=YAML)
    assert [step.action for step in deploy(made).steps] == ["create", "create", "create"]
    assert [step.action for step in deploy(made).steps] == ["keep", "keep", "keep"]


def test_a_changed_endpoint_is_updated_with_its_rollout(project, canned, model):
    made = project(model, "endpoint.rollout={type: canary, alarms: [errors]}", yaml=YAML)
    canned("DescribeEndpoint", described())
    planned = deployment.plan(made)
    assert [step.action for step in planned.steps] == ["create", "create", "update"]
    assert planned.previous == "old"
    assert planned.steps[-1].call.request["DeploymentConfig"]["AutoRollbackConfiguration"]


def test_an_endpoint_that_failed_is_made_anew(project, canned, model, sent):
    made = project(model, yaml=YAML)
    canned("DescribeEndpoint", described(EndpointStatus="Failed"), described(EndpointStatus="Failed"), MISSING)
    canned("DeleteEndpoint", {})
    canned("DeleteEndpointConfig", {})
    canned("DescribeEndpointConfig", MISSING)
    canned("CreateEndpoint", {"EndpointArn": ARN})
    planned = deployment.plan(made)
    assert [step.action for step in planned.steps] == ["create", "create", "delete", "create"]
    deployment.apply(made, planned)
    changing = [name for name, _ in sent if name.startswith(("Create", "Delete"))]
    assert changing[-4:] == ["CreateModel", "CreateEndpointConfig", "DeleteEndpoint", "CreateEndpoint"]


def test_an_update_that_an_alarm_took_back_is_a_failure(project, model):
    planned = deployment.Plan("digits", "new", "old", ())
    with pytest.raises(JobFailed, match="the update of digits was rolled back to old: alarm errors"):
        deployment.finish(project(yaml=YAML), planned, lambda *_: described(FailureReason="alarm errors"))


def test_after_an_update_the_way_back_is_noted_and_taken(project, canned, sent):
    made = project("endpoint.ttl=4h", yaml=YAML)
    canned("AddTags", {"Tags": []})
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    canned("DescribeEndpoint", described(EndpointConfigName="new"))
    canned("ListTags", {"Tags": [{"Key": deployment.PREVIOUS_TAG, "Value": "old"}]})
    canned("DescribeEndpointConfig", {"EndpointConfigName": "old"})
    deployment.finish(made, deployment.Plan("digits", "new", "old", ()))
    (tags,) = [body["Tags"] for name, body in sent if name == "AddTags"]
    by_key = {tag["Key"]: tag["Value"] for tag in tags}
    assert by_key[deployment.PREVIOUS_TAG] == "old"
    assert datetime.fromisoformat(by_key[deployment.EXPIRES_TAG]) > NOW + timedelta(hours=3)
    planned = deployment.rollback(made, "digits")
    assert (planned.config_name, planned.previous) == ("old", "new")
    assert [body["EndpointConfigName"] for name, body in sent if name == "UpdateEndpoint"] == ["old"]


def test_an_update_nobody_waits_for_can_be_gone_back_from(project, canned, sent, model):
    made = project(model, yaml=YAML)
    canned("DescribeEndpoint", described())
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    canned("AddTags", {"Tags": []})
    planned = deployment.plan(made)
    deployment.apply(made, planned)
    deployment.note(made, planned)
    (body,) = [body for name, body in sent if name == "AddTags"]
    assert body == {"ResourceArn": ARN, "Tags": [{"Key": deployment.PREVIOUS_TAG, "Value": "old"}]}


def test_scaling_that_is_no_longer_configured_ends_with_its_alarms(project, canned, model, aws):
    attachments.scale(project("endpoint.scaling={max: 4, steps: [{above: 9, change: 1}]}", yaml=YAML))
    made = project(model, yaml=YAML)
    canned("DescribeEndpoint", described())
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    planned = deployment.plan(made)
    assert [str(step).split() for step in planned.steps][2] == ["delete", "Scaling", "endpoint/digits/variant/main"]
    assert planned.steps[-1].action == "update"
    deployment.apply(made, planned)
    reply = aws.call("application-autoscaling", "DescribeScalableTargets", ServiceNamespace="sagemaker")
    assert reply["ScalableTargets"] == []
    assert aws.call("cloudwatch", "DescribeAlarms")["MetricAlarms"] == []


def test_without_an_update_there_is_no_way_back(project, canned):
    canned("DescribeEndpoint", described())
    canned("ListTags", {"Tags": []})
    with pytest.raises(ConfigError, match="there is nothing to go back to"):
        deployment.rollback(project(yaml=YAML), "digits")


def test_a_way_back_that_was_deleted_is_named(project, canned):
    canned("DescribeEndpoint", described())
    canned("ListTags", {"Tags": [{"Key": deployment.PREVIOUS_TAG, "Value": "older"}]})
    canned("DescribeEndpointConfig", MISSING)
    with pytest.raises(ConfigError, match="the configuration older has been deleted"):
        deployment.rollback(project(yaml=YAML), "digits")


def test_an_asynchronous_endpoint_scales_to_zero_and_wakes(project, canned, aws):
    made = project("endpoint.asynchronous=true", "endpoint.scaling={min: 0, max: 3}", yaml=YAML)
    canned("DescribeEndpoint", described(EndpointConfigName="new"))
    deployment.finish(made, deployment.Plan("digits", "new", None, ()))
    (target,) = aws.call("application-autoscaling", "DescribeScalableTargets", ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 3)
    (alarm,) = aws.call("cloudwatch", "DescribeAlarms")["MetricAlarms"]
    policies = aws.call("application-autoscaling", "DescribeScalingPolicies", ServiceNamespace="sagemaker")
    arns = {policy["PolicyName"]: policy["PolicyARN"] for policy in policies["ScalingPolicies"]}
    assert alarm["AlarmActions"] == [arns["digits-main-wake"]]


def test_deleting_an_endpoint_ends_its_scaling_too(project, canned, aws):
    made = project("endpoint.scaling={max: 3, target: 50}", yaml=YAML)
    canned("DescribeEndpoint", described(EndpointConfigName="new"), described(), MISSING)
    canned("DeleteEndpoint", {})
    canned("DescribeEndpointConfig", MISSING)
    deployment.finish(made, deployment.Plan("digits", "new", None, ()), lambda *_: described(EndpointConfigName="new"))
    deployment.delete(made, "digits", wait=False)
    reply = aws.call("application-autoscaling", "DescribeScalableTargets", ServiceNamespace="sagemaker")
    assert reply["ScalableTargets"] == []


def test_a_caller_who_may_not_see_scaling_can_still_delete(project, canned, caplog):
    denied = {"Error": {"Code": "AccessDeniedException", "Message": "no"}}
    canned("DescribeScalableTargets", denied, service="application-autoscaling")
    canned("DescribeEndpoint", described(), MISSING)
    canned("DeleteEndpoint", {})
    canned("DescribeEndpointConfig", MISSING)
    deployment.delete(project(yaml=YAML), "digits")
    assert "scaling of digits stays as it is" in caplog.text


def test_deleting_an_endpoint_has_an_end(project, canned, monkeypatch):
    canned("DescribeEndpoint", described(EndpointStatus="Deleting", ProductionVariants=[]))
    canned("DeleteEndpoint", {})
    canned("DescribeEndpointConfig", MISSING)
    monkeypatch.setattr(deployment, "DELETE_SECONDS", -1)
    with pytest.raises(TimedOut, match="endpoint digits is still being deleted"):
        deployment.delete(project(yaml=YAML), "digits")


@pytest.fixture
def three_endpoints(canned):
    """Ours and expired; ours, a day old and never invoked; somebody else's."""
    names = ("expired", "idle", "theirs")
    arns = {name: f"arn:aws:sagemaker:us-east-1:123456789012:endpoint/{name}" for name in names}
    listed = [
        {"EndpointName": name, "EndpointArn": arns[name], "CreationTime": NOW - timedelta(days=1)} for name in names
    ]
    canned("ListEndpoints", {"Endpoints": listed})
    ours = {"Key": "slipway:project", "Value": "digits"}
    past = {"Key": deployment.EXPIRES_TAG, "Value": (NOW - timedelta(hours=1)).isoformat()}
    canned("ListTags", {"Tags": [ours, past]}, {"Tags": [ours]}, {"Tags": []})
    canned("DescribeEndpoint", described(EndpointName="idle"))


def test_only_endpoints_past_their_time_are_reaped(project, three_endpoints):
    (found,) = deployment.reapable(project(yaml=YAML), None, NOW)
    assert found.name == "expired"
    assert found.reason.startswith("expired at")


def test_idle_endpoints_are_reaped_when_asked_for(project, three_endpoints):
    found = deployment.reapable(project(yaml=YAML), timedelta(hours=6), NOW)
    assert [(item.name, item.reason) for item in found][1] == ("idle", "no invocation for 6:00:00")


def test_an_invoked_endpoint_is_not_idle(project, three_endpoints, aws):
    dimensions = [{"Name": "EndpointName", "Value": "idle"}, {"Name": "VariantName", "Value": "main"}]
    datum = {"MetricName": "Invocations", "Dimensions": dimensions, "Value": 3.0, "Timestamp": NOW - timedelta(hours=1)}
    aws.call("cloudwatch", "PutMetricData", Namespace="AWS/SageMaker", MetricData=[datum])
    made = project(yaml=YAML)
    assert deployment.invocations(made, "idle", timedelta(hours=6), NOW) == 3
    assert [item.name for item in deployment.reapable(made, timedelta(hours=6), NOW)] == ["expired"]


def test_the_whole_accounts_idle_endpoints_are_listed(project, three_endpoints, aws):
    made = project(yaml=YAML)
    assert deployment.idle_endpoints(made, timedelta(hours=6), NOW) == ["expired", "idle", "theirs"]
    assert deployment.idle_endpoints(made, timedelta(days=2), NOW) == []  # younger than that


def test_an_endpoint_whose_components_are_invoked_is_not_idle(project, canned, aws):
    canned("DescribeEndpoint", described())
    canned("DescribeEndpointConfig", {"ProductionVariants": [{"VariantName": "main"}]})
    canned("ListInferenceComponents", {"InferenceComponents": [{"InferenceComponentName": "digits-a"}]})
    dimensions = [{"Name": "InferenceComponentName", "Value": "digits-a"}]
    datum = {"MetricName": "Invocations", "Dimensions": dimensions, "Value": 2.0, "Timestamp": NOW - timedelta(hours=1)}
    aws.call("cloudwatch", "PutMetricData", Namespace="AWS/SageMaker", MetricData=[datum])
    assert deployment.invocations(project(yaml=YAML), "digits", timedelta(hours=6), NOW) == 2


@pytest.mark.usefixtures("three_endpoints")
def test_the_verbs_reap_and_roll_back(aws, canned, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher.yaml").write_text(YAML)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    assert cli.main(["reap", "--dry-run"]) == 0
    assert "-> would delete expired" in capsys.readouterr().out
    assert cli.main(["reap", "--idle", "soon"]) == 2
    assert "--idle: 'soon' is no duration" in capsys.readouterr().err
    assert cli.main(["rollback", "--dry-run"]) == 0
    monkeypatch.setattr(deployment, "rollback", lambda *_: deployment.Plan("digits", "old", "new", ()))
    monkeypatch.setattr(run, "follow", lambda *_: described())
    canned("AddTags", {"Tags": []})
    assert cli.main(["rollback", "--no-wait"]) == 0
    assert "-> endpoint digits serves old again" in capsys.readouterr().out

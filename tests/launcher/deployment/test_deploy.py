"""An endpoint is created or updated to what the configuration says."""

import pytest

from launcher import attachments, load_times
from launcher.deployment import deploy
from launcher.deployment.tags import PREVIOUS_TAG
from launcher.errors import ConfigError, JobFailed
from launcher.jobs.api import ApiCall
from launcher.jobs.model import Measured

ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"
MISSING = {"Error": {"Code": "ValidationException", "Message": "Could not find"}}


def deployed(project):
    planned = deploy.plan(project)
    deploy.apply(project, planned)
    deploy.finish(project, planned)
    return planned


def test_a_step_reads_as_a_line():
    step = deploy.Step("create", ApiCall("sagemaker", "CreateModel", {"ModelName": "m"}))
    assert str(step).split() == ["create", "Model", "m"]


def test_the_first_deployment_creates_and_the_second_keeps(project, model, yaml):
    made = project(model, yaml=yaml)
    assert [step.action for step in deployed(made).steps] == ["create", "create", "create"]
    assert [step.action for step in deployed(made).steps] == ["keep", "keep", "keep"]


def test_a_changed_endpoint_is_updated_with_its_rollout(project, canned, model, described, yaml):
    made = project(model, "endpoint.rollout={type: canary, alarms: [errors]}", yaml=yaml)
    canned("DescribeEndpoint", described())
    planned = deploy.plan(made)
    assert [step.action for step in planned.steps] == ["create", "create", "update"]
    assert planned.previous == "old"
    assert planned.steps[-1].call.request["DeploymentConfig"]["AutoRollbackConfiguration"]


def test_an_endpoint_that_failed_is_made_anew(project, canned, model, sent, described, yaml):
    made = project(model, yaml=yaml)
    canned("DescribeEndpoint", described(EndpointStatus="Failed"), described(EndpointStatus="Failed"), MISSING)
    canned("DeleteEndpoint", {})
    canned("DeleteEndpointConfig", {})
    canned("DescribeEndpointConfig", MISSING)
    canned("CreateEndpoint", {"EndpointArn": ARN})
    planned = deploy.plan(made)
    assert [step.action for step in planned.steps] == ["create", "create", "delete", "create"]
    deploy.apply(made, planned)
    changing = [name for name, _ in sent if name.startswith(("Create", "Delete"))]
    assert changing[-4:] == ["CreateModel", "CreateEndpointConfig", "DeleteEndpoint", "CreateEndpoint"]


def test_an_endpoint_that_failed_is_made_anew_with_the_configuration_it_has(
    project, canned, model, sent, described, yaml
):
    made = project(model, yaml=yaml)
    failed = described(EndpointStatus="Failed")
    canned("DescribeEndpoint", failed, failed, failed, MISSING)
    canned("DescribeEndpointConfig", {"EndpointConfigName": "digits"})
    for operation in ("DeleteEndpoint", "DeleteEndpointConfig"):
        canned(operation, {})
    canned("CreateEndpoint", {"EndpointArn": ARN})
    failed["EndpointConfigName"] = deploy.plan(made).config_name
    planned = deploy.plan(made)
    assert [step.action for step in planned.steps[-3:]] == ["keep", "delete", "create"]
    deploy.apply(made, planned)
    assert "DeleteEndpointConfig" not in [name for name, _ in sent]


def test_an_update_that_an_alarm_took_back_is_a_failure(project, model, described, yaml):
    planned = deploy.Plan("digits", "new", "old", ())
    with pytest.raises(JobFailed, match="the update of digits was rolled back to old: alarm errors"):
        deploy.finish(project(yaml=yaml), planned, lambda *_: described(FailureReason="alarm errors"))


def test_an_update_nobody_waits_for_can_be_gone_back_from(project, canned, sent, model, described, yaml):
    made = project(model, yaml=yaml)
    canned("DescribeEndpoint", described())
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    canned("AddTags", {"Tags": []})
    planned = deploy.plan(made)
    deploy.apply(made, planned)
    deploy.note(made, planned)
    (body,) = [body for name, body in sent if name == "AddTags"]
    assert body == {"ResourceArn": ARN, "Tags": [{"Key": PREVIOUS_TAG, "Value": "old"}]}


def test_scaling_that_is_no_longer_configured_ends_with_its_alarms(project, canned, model, aws, described, yaml):
    attachments.scale(project("endpoint.scaling={max: 4, steps: [{above: 9, change: 1}]}", yaml=yaml))
    made = project(model, yaml=yaml)
    canned("DescribeEndpoint", described())
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    planned = deploy.plan(made)
    assert [str(step).split() for step in planned.steps][2] == ["delete", "Scaling", "endpoint/digits/variant/main"]
    assert planned.steps[-1].action == "update"
    deploy.apply(made, planned)
    reply = aws.call("application-autoscaling", "DescribeScalableTargets", ServiceNamespace="sagemaker")
    assert reply["ScalableTargets"] == []
    assert aws.call("cloudwatch", "DescribeAlarms")["MetricAlarms"] == []


def test_an_asynchronous_endpoint_scales_to_zero_and_wakes(project, canned, aws, described, yaml):
    made = project("endpoint.asynchronous=true", "endpoint.scaling={min: 0, max: 3}", yaml=yaml)
    canned("DescribeEndpoint", described(EndpointConfigName="new"))
    deploy.finish(made, deploy.Plan("digits", "new", None, ()))
    (target,) = aws.call("application-autoscaling", "DescribeScalableTargets", ServiceNamespace="sagemaker")[
        "ScalableTargets"
    ]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (0, 3)
    (alarm,) = aws.call("cloudwatch", "DescribeAlarms")["MetricAlarms"]
    policies = aws.call("application-autoscaling", "DescribeScalingPolicies", ServiceNamespace="sagemaker")
    arns = {policy["PolicyName"]: policy["PolicyARN"] for policy in policies["ScalingPolicies"]}
    assert alarm["AlarmActions"] == [arns["digits-main-wake"]]


def test_a_deployment_that_is_under_way_is_waited_for(project, canned, model, described, yaml):
    made, reply = project(model, yaml=yaml), described(EndpointStatus="Updating")
    canned("DescribeEndpoint", MISSING, reply)
    reply["PendingDeploymentSummary"] = {"EndpointConfigName": deploy.plan(made).config_name}
    planned = deploy.plan(made)
    assert (planned.steps[-1].action, planned.previous) == ("keep", "old")


def test_an_endpoint_that_changes_to_something_else_takes_no_deployment(project, canned, model, described, yaml):
    states = ("Creating", "Updating", "RollingBack", "Deleting", "SystemUpdating")
    canned("DescribeEndpoint", *(described(EndpointStatus=status) for status in states))
    made = project(model, yaml=yaml)
    for status in states:
        with pytest.raises(ConfigError, match=rf"digits is {status} \(old\).*attach digits"):
            deploy.plan(made)


def test_the_plan_names_inference_components_and_those_that_go(project, canned, model, described, yaml):
    canned("ListInferenceComponents", {"InferenceComponents": [{"InferenceComponentName": "digits-old"}]})
    canned("DescribeInferenceComponent", MISSING)
    canned("DescribeEndpoint", described())
    canned("DescribeEndpointConfig", {"ProductionVariants": [{"VariantName": "main"}]})
    made = project("endpoint.components=[{name: a, model: ./model.tar.gz}]", yaml=yaml)
    steps = [str(step).split() for step in deploy.plan(made).steps]
    assert ["delete", "Component", "digits-old"] in steps
    assert steps[-1] == ["create", "Component", "digits-a"]
    without = [str(step).split() for step in deploy.plan(project(model, yaml=yaml)).steps]
    assert without.index(["delete", "Component", "digits-old"]) < len(without) - 1  # before the update
    assert without[-1][:2] == ["update", "Endpoint"]


def test_measured_time_limits_are_in_the_plan_with_their_origin(project, model, yaml, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = project(model, yaml=yaml)
    assert deploy.plan(made).notes == ()
    (etag,) = deploy.plan(made).etags
    entry = load_times.Entry(Measured(200.0, 3.0, "deploy --local, 2026-11-21"))
    load_times.note(made.home, etag, entry)
    planned = deploy.plan(made)
    assert planned.notes == ("startup_timeout 600 s: loaded in 200.0 s here (deploy --local, 2026-11-21), x 3",)
    (variant,) = planned.steps[1].call.request["ProductionVariants"]
    assert variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 600
    (line,) = deploy.plan(project(model, "endpoint.startup_timeout=20m", yaml=yaml)).notes
    assert line == "startup_timeout 1200 s: the configuration says so"

"""The offline validator agrees with botocore's own, and knows the limits botocore leaves to the service."""

import json
import re

import botocore.session
import pytest
from botocore.validate import ParamValidator

from launcher import cli
from launcher.jobs.api import ApiCall
from launcher.validate import SETTINGS, enum_problems, problems, service_model

GOOD = {
    "TrainingJobName": "a",
    "RoleArn": "arn:aws:iam::123456789012:role/SageMakerRole",
    "OutputDataConfig": {"S3OutputPath": "s3://b/o"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
    "StoppingCondition": {"MaxRuntimeInSeconds": 1},
    "AlgorithmSpecification": {"TrainingInputMode": "File", "TrainingImage": "x"},
}


def botocores_verdict(request):
    model = botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    return ParamValidator().validate(request, model.input_shape).has_errors()


def changed(**members):
    return {**GOOD, **members}


@pytest.mark.parametrize(
    ("request_body", "finding"),
    [
        (changed(TrainingJobNam="x"), "TrainingJobNam is not a member"),
        ({key: GOOD[key] for key in GOOD if key != "RoleArn"}, "RoleArn is missing"),
        (changed(HyperParameters={"a": 1}), "must be of type string"),
        (changed(TrainingJobName=""), "below the minimum"),
        (changed(StoppingCondition={"MaxRuntimeInSeconds": 0}), "below the minimum"),
        (changed(Tags=[{"Key": "a"}]), "Value is missing"),
        (changed(EnableManagedSpotTraining="yes"), "must be of type boolean"),
    ],
)
def test_what_botocore_refuses_is_refused_here_too(request_body, finding):
    assert botocores_verdict(request_body)
    assert any(finding in problem for problem in problems(ApiCall("sagemaker", "CreateTrainingJob", request_body)))


@pytest.mark.parametrize(
    ("request_body", "finding"),
    [
        (changed(TrainingJobName="under_score"), "does not match"),
        (changed(TrainingJobName="a" * 64), "above the maximum of 63"),
        (changed(HyperParameters={str(n): "x" for n in range(101)}), "above the maximum of 100"),
        (changed(HyperParameters={"a": "x" * 2501}), "above the maximum of 2500"),
        (changed(Environment={"A-B": "x"}), "does not match"),
        (changed(Environment={"A": "x" * 513}), "above the maximum of 512"),
        (changed(RetryStrategy={"MaximumRetryAttempts": 31}), "above the maximum of 30"),
        (changed(ResourceConfig={"InstanceType": "ml.nope", "VolumeSizeInGB": 1}), "is none of the"),
    ],
)
def test_c73_limits_that_only_the_service_knows_are_checked_before_the_call(request_body, finding):
    assert not botocores_verdict(request_body)
    assert any(finding in problem for problem in problems(ApiCall("sagemaker", "CreateTrainingJob", request_body)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.environment={A-B: x}", "Environment key: 'A-B' does not match .*; change training.environment"),
        ("training.channels.train.source=s3://b/" + "x" * 1020, "above the maximum of 1024; change training.channels"),
        ("network={subnets: [sub net], security_groups: [sg-1]}", "does not match .*; change network"),
        ("role=arn:nonsense", "does not match .*; change role"),
        ("endpoint.environment={A-B: x}", "Environment key: 'A-B' does not match .*; change endpoint"),
        ("endpoint.kms_key=a key", "does not match .*; change endpoint"),
    ],
)
def test_a_dry_run_refuses_what_the_service_would_and_names_its_setting(
    setting, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    verb = "deploy" if setting.startswith("endpoint") else "train"
    assert cli.main([verb, "--dry-run", "--set", setting]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(message, printed.err)


def test_a_dry_run_warns_of_an_instance_type_that_is_newer_than_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry-run", "--json", "--set", "training.instance_type=ml.zz9.large"]) == 0
    printed = capsys.readouterr()
    assert "known values; change training.instance_type; sent all the same" in printed.err
    assert json.loads(printed.out)[0]["request"]["ResourceConfig"]["InstanceType"] == "ml.zz9.large"


@pytest.mark.parametrize("path", SETTINGS)
def test_every_setting_is_named_for_a_member_that_the_api_has(path):
    operation, *members = path.split(".")
    services = ("sagemaker", "cloudwatch", "application-autoscaling")
    model = next(model for model in map(service_model, services) if operation in model["operations"])
    shape = model["shapes"][model["operations"][operation]["input"]["shape"]]
    for name in members:
        shape = model["shapes"][shape["members"][name]["shape"]]


def test_a_switch_is_not_a_number():
    call = ApiCall("sagemaker", "CreateTrainingJob", changed(StoppingCondition={"MaxRuntimeInSeconds": True}))
    assert "must be of type integer" in problems(call)[0]


def test_a_good_request_has_no_problems():
    assert problems(ApiCall("sagemaker", "CreateTrainingJob", GOOD)) == []


def test_only_unknown_values_count_as_doubtful():
    request = changed(ResourceConfig={"InstanceType": "ml.new1.large", "VolumeSizeInGB": 1}, TrainingJobName="a_b")
    assert len(enum_problems(ApiCall("sagemaker", "CreateTrainingJob", request))) == 1


def test_other_services_are_known_too():
    request = {"repositoryName": "UPPER CASE"}
    assert "does not match" in problems(ApiCall("ecr", "CreateRepository", request))[0]

"""What only moto keeps survives a restart of the server."""

import json

import pytest

from launcher.images.registry import lifecycle_policy
from launcher.local import client, journal
from launcher.local.journal import Entry, Journal, operation_of

TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


def changes(aws):
    """One change in each service that moto plays, and what they say of it."""
    aws.client("ecr").create_repository(repositoryName="images", imageTagMutability="IMMUTABLE")
    policy = json.dumps(lifecycle_policy(20))
    aws.client("ecr").put_lifecycle_policy(repositoryName="images", lifecyclePolicyText=policy)
    aws.client("iam").create_role(RoleName="jobs", AssumeRolePolicyDocument=TRUST)
    aws.client("iam").create_role(RoleName="gone", AssumeRolePolicyDocument=TRUST)
    aws.client("iam").delete_role(RoleName="gone")
    cloudwatch = aws.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName="errors",
        MetricName="Errors",
        Namespace="n",
        ComparisonOperator="GreaterThanThreshold",
        EvaluationPeriods=1,
        Period=60,
        Threshold=1,
        Statistic="Sum",
    )
    cloudwatch.put_metric_data(Namespace="n", MetricData=[{"MetricName": "Errors", "Value": 3}])
    scaling = aws.client("application-autoscaling")
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/e/variant/v",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    scaling.register_scalable_target(**target, MinCapacity=1, MaxCapacity=4)
    scaling.put_scaling_policy(**target, PolicyName="p", PolicyType="TargetTrackingScaling")
    bounds = {"MinCapacity": 0, "MaxCapacity": 1}
    night = {"ScheduledActionName": "night", "Schedule": "cron(0 20 * * ? *)", "ScalableTargetAction": bounds}
    scaling.put_scheduled_action(**target, **night)
    aws.s3.put_bucket_tagging(Bucket="test-bucket", Tagging={"TagSet": [{"Key": "team", "Value": "a"}]})
    aws.s3.put_object(Bucket="test-bucket", Key="tagged", Body=b"x")
    aws.s3.put_object_tagging(Bucket="test-bucket", Key="tagged", Tagging={"TagSet": [{"Key": "k", "Value": "v"}]})


def told(aws):
    iam, cloudwatch = aws.client("iam"), aws.client("cloudwatch")
    policies = aws.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")
    schedules = aws.client("application-autoscaling").describe_scheduled_actions(ServiceNamespace="sagemaker")
    return {
        "schedules": [(item["ScheduledActionName"], item["Schedule"]) for item in schedules["ScheduledActions"]],
        "repositories": [item["repositoryUri"] for item in aws.client("ecr").describe_repositories()["repositories"]],
        "mutability": aws.client("ecr").describe_repositories()["repositories"][0]["imageTagMutability"],
        "lifecycle": aws.client("ecr").get_lifecycle_policy(repositoryName="images")["lifecyclePolicyText"],
        "roles": [(role["RoleName"], role["RoleId"]) for role in iam.list_roles()["Roles"]],
        "alarms": [alarm["AlarmArn"] for alarm in cloudwatch.describe_alarms()["MetricAlarms"]],
        "metrics": [metric["MetricName"] for metric in cloudwatch.list_metrics(Namespace="n")["Metrics"]],
        "policies": [policy["PolicyARN"] for policy in policies["ScalingPolicies"]],
        "bucket tags": aws.s3.get_bucket_tagging(Bucket="test-bucket")["TagSet"],
        "object tags": aws.s3.get_object_tagging(Bucket="test-bucket", Key="tagged")["TagSet"],
    }


def bucket_made_anew(aws):
    aws.s3.create_bucket(Bucket="again")
    aws.s3.put_bucket_tagging(Bucket="again", Tagging={"TagSet": [{"Key": "team", "Value": "a"}]})
    aws.s3.delete_bucket(Bucket="again")
    aws.s3.create_bucket(Bucket="again")


def points_of(aws, name):
    """Count and minimum of the metric that a job printed."""
    job = aws.sagemaker.describe_training_job(TrainingJobName=name)
    found = aws.client("cloudwatch").get_metric_statistics(
        Namespace="/aws/sagemaker/TrainingJobs",
        MetricName="loss",
        Dimensions=[{"Name": "TrainingJobName", "Value": name}],
        StartTime=job["CreationTime"].replace(microsecond=0),
        EndTime=job["TrainingEndTime"].replace(year=job["TrainingEndTime"].year + 1),
        Period=86400,
        Statistics=["SampleCount", "Minimum"],
    )["Datapoints"]
    return sum(point["SampleCount"] for point in found), min(point["Minimum"] for point in found)


@pytest.fixture(scope="module")
def lives(tmp_path_factory, connect, server_environment):
    """What a server told before it went down, and the one that came after it: (told, name of a job, clients)."""
    home = tmp_path_factory.mktemp("journal")
    first = connect(client.up(home, server_environment()))
    changes(first)
    bucket_made_anew(first)
    metric = {"Name": "loss", "Regex": "loss=([0-9.]+);"}
    algorithm = {"TrainingImage": "x", "TrainingInputMode": "File", "MetricDefinitions": [metric]}
    first.train(
        {
            "TrainingJobName": "printing",
            "RoleArn": "arn:aws:iam::123456789012:role/jobs",
            "AlgorithmSpecification": algorithm,
            "OutputDataConfig": {"S3OutputPath": "s3://test-bucket/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            "HyperParameters": {"lines": '["loss=3;", "loss=2.5;"]'},
        }
    )
    before = told(first), points_of(first, "printing")
    client.down(home)
    yield before, connect(client.up(home, server_environment()))
    client.down(home)


def test_what_moto_keeps_survives_down_and_up(lives):
    (before, _), again = lives
    assert [name for name, _ in before["roles"]] == ["jobs"]
    assert told(again) == before


def test_a_training_jobs_metrics_survive_as_its_log_does(lives):
    (_, before), again = lives
    assert before == (2, 2.5)
    assert points_of(again, "printing") == before


def test_a_bucket_that_is_made_anew_has_no_settings_of_the_old_one(lives):
    _, again = lives
    with pytest.raises(again.s3.exceptions.ClientError, match="NoSuchTagSet"):
        again.s3.get_bucket_tagging(Bucket="again")


# --- the journal itself -----------------------------------------------------------------------------------------------


def entry(operation="CreateRole", service="iam", path="/"):
    return Entry(service, "us-east-1", operation, "POST", path, "", {}, "", 1)


def accept(environ, start_response):
    start_response("200 OK", [])
    return [b""]


def send(book, operation, service="iam", application=accept):
    target = {"HTTP_X_AMZ_TARGET": f"Service.{operation}"} if operation else {}
    environ = {**entry().environ("host"), **target}
    book.answer(application, environ, service, lambda *_: None)


def kept(path):
    return [json.loads(line)["operation"] for line in path.read_text().splitlines()] if path.exists() else []


def test_what_reads_or_fails_is_not_kept(tmp_path):
    book = Journal(tmp_path / "j")

    def refuse(environ, start_response):
        start_response("400 Bad Request", [])
        return [b""]

    send(book, "ListRoles")
    send(book, "CreateRole", application=refuse)
    send(book, "PutLogEvents", service="logs")
    send(book, "CreateRole")
    assert kept(tmp_path / "j") == ["CreateRole"]


def test_credentials_are_not_kept(tmp_path):
    book = Journal(tmp_path / "j")
    environ = entry().environ("host")
    environ["HTTP_AUTHORIZATION"] = (
        "AWS4-HMAC-SHA256 Credential=AKIAREAL/20260101/eu-west-1/iam/aws4_request, Signature=x"
    )
    book.answer(accept, environ, "iam", lambda *_: None)
    text = (tmp_path / "j").read_text()
    assert "AKIAREAL" not in text
    assert json.loads(text)["region"] == "eu-west-1"


def test_of_many_points_the_newest_stay_and_of_all_else_everything(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MOST_DATA", 4)
    book = Journal(tmp_path / "j")
    send(book, "CreateRole")
    for _ in range(9):
        send(book, "PutMetricData", service="monitoring")
    assert kept(tmp_path / "j")[0] == "CreateRole"
    assert kept(tmp_path / "j").count("PutMetricData") <= 4


def test_a_journal_that_grows_too_long_forgets_the_oldest_and_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(journal, "MOST_REQUESTS", 10)
    book = Journal(tmp_path / "j")
    for number in range(12):
        send(book, f"Create{number}")
    assert len(kept(tmp_path / "j")) <= 10
    assert kept(tmp_path / "j")[-1] == "Create11"
    assert "the oldest are forgotten" in caplog.text


def test_a_line_that_a_killed_server_cut_keeps_none_of_the_others(tmp_path, caplog):
    book = Journal(tmp_path / "j")
    send(book, "CreateRole")
    with (tmp_path / "j").open("a") as file:
        file.write('{"service": "ia')
    seen = []

    def look(environ, start_response):
        seen.append(environ["HTTP_X_AMZ_TARGET"])
        return accept(environ, start_response)

    for _ in range(2):  # a replay leaves the file as it is: another server may come after this one
        seen.clear()
        Journal(tmp_path / "j").replay(look, "host")
    assert seen == ["Service.CreateRole"]
    assert '{"service": "ia' in caplog.text


@pytest.mark.parametrize(
    ("environ", "body", "operation"),
    [
        ({"HTTP_X_AMZ_TARGET": "AmazonEC2ContainerRegistry_V1.PutImage"}, b"", "PutImage"),
        ({"PATH_INFO": "/service/CloudWatch/operation/PutMetricAlarm"}, b"\xff", "PutMetricAlarm"),
        ({"CONTENT_TYPE": "application/x-www-form-urlencoded"}, b"Action=CreateRole&Version=1", "CreateRole"),
        ({"QUERY_STRING": "Action=ListRoles", "REQUEST_METHOD": "GET"}, b"", "ListRoles"),
        ({"REQUEST_METHOD": "HEAD"}, b"", "Get"),
        ({"REQUEST_METHOD": "PUT"}, b"", "PUT"),
    ],
)
def test_the_operation_is_read_from_every_protocol(environ, body, operation):
    assert operation_of({"PATH_INFO": "/", "REQUEST_METHOD": "POST", **environ}, body) == operation

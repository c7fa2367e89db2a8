"""Endpoints that nobody needs are found and reaped."""

from datetime import UTC, datetime, timedelta

import pytest

from launcher import cli
from launcher.deployment import idle
from launcher.deployment.tags import EXPIRES_TAG
from launcher.errors import AwsRefused

ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"
MISSING = {"Error": {"Code": "ValidationException", "Message": "Could not find"}}
NOW = datetime.now(UTC)


@pytest.fixture
def three_endpoints(canned, described):
    """Ours and expired; ours, a day old and never invoked; somebody else's."""
    names = ("expired", "idle", "theirs")
    arns = {name: f"arn:aws:sagemaker:us-east-1:123456789012:endpoint/{name}" for name in names}
    listed = [
        {
            "EndpointName": name,
            "EndpointArn": arns[name],
            "CreationTime": NOW - timedelta(days=1),
            "EndpointStatus": "InService",
        }
        for name in names
    ]
    canned("ListEndpoints", {"Endpoints": listed})
    ours = {"Key": "slipway:project", "Value": "digits"}
    past = {"Key": EXPIRES_TAG, "Value": (NOW - timedelta(hours=1)).isoformat()}
    canned("ListTags", {"Tags": [ours, past]}, {"Tags": [ours]}, {"Tags": []})
    canned("DescribeEndpoint", described(EndpointName="idle"))


def test_only_endpoints_past_their_time_are_reaped(project, three_endpoints, yaml):
    (found,) = idle.reapable(project(yaml=yaml), None, NOW)
    assert found.name == "expired"
    assert found.reason.startswith("expired at")


def test_idle_endpoints_are_reaped_when_asked_for(project, three_endpoints, yaml):
    found = idle.reapable(project(yaml=yaml), timedelta(hours=6), NOW)
    assert [(item.name, item.reason) for item in found][1] == ("idle", "no invocation for 6:00:00")


def test_an_invoked_endpoint_is_not_idle(project, three_endpoints, aws, yaml):
    dimensions = [{"Name": "EndpointName", "Value": "idle"}, {"Name": "VariantName", "Value": "main"}]
    datum = {"MetricName": "Invocations", "Dimensions": dimensions, "Value": 3.0, "Timestamp": NOW - timedelta(hours=1)}
    aws.call("cloudwatch", "PutMetricData", Namespace="AWS/SageMaker", MetricData=[datum])
    made = project(yaml=yaml)
    assert idle.invocations(made, "idle", timedelta(hours=6), NOW) == 3
    assert [item.name for item in idle.reapable(made, timedelta(hours=6), NOW)] == ["expired"]


def test_the_whole_accounts_idle_endpoints_are_listed(project, three_endpoints, aws, yaml):
    made = project(yaml=yaml)
    listed = aws.call("sagemaker", "ListEndpoints")["Endpoints"]
    assert idle.idle_endpoints(made, listed, timedelta(hours=6), NOW) == listed
    assert idle.idle_endpoints(made, listed, timedelta(days=2), NOW) == []  # younger than that


def test_an_endpoint_whose_components_are_invoked_is_not_idle(project, canned, aws, described, yaml):
    canned("DescribeEndpoint", described())
    canned("DescribeEndpointConfig", {"ProductionVariants": [{"VariantName": "main"}]})
    canned("ListInferenceComponents", {"InferenceComponents": [{"InferenceComponentName": "digits-a"}]})
    dimensions = [{"Name": "InferenceComponentName", "Value": "digits-a"}]
    datum = {"MetricName": "Invocations", "Dimensions": dimensions, "Value": 2.0, "Timestamp": NOW - timedelta(hours=1)}
    aws.call("cloudwatch", "PutMetricData", Namespace="AWS/SageMaker", MetricData=[datum])
    assert idle.invocations(project(yaml=yaml), "digits", timedelta(hours=6), NOW) == 2


@pytest.fixture
def verbs(aws, monkeypatch, tmp_path, yaml):
    """A project directory whose account is moto's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher.yaml").write_text(yaml)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)


@pytest.mark.usefixtures("three_endpoints", "verbs")
def test_the_verbs_list_and_reap(capsys):
    assert cli.main(["endpoints"]) == 0
    assert "theirs" in capsys.readouterr().out
    assert cli.main(["endpoints", "ls", "--idle", "2d"]) == 0
    assert capsys.readouterr().out == "none\n"  # all are younger
    assert cli.main(["endpoints", "--idle", "6h", "--json"]) == 0
    assert '"name": "idle"' in capsys.readouterr().out
    assert cli.main(["endpoints", "reap", "--idle", "soon"]) == 2
    assert "--idle: 'soon' is no duration" in capsys.readouterr().err


@pytest.mark.usefixtures("three_endpoints", "verbs")
def test_a_dry_run_of_reap_deletes_nothing(sent, capsys):
    assert cli.main(["endpoints", "reap", "--dry-run"]) == 0
    assert "-> would delete expired" in capsys.readouterr().out
    assert not [name for name, _ in sent if name.startswith("Delete")]


@pytest.mark.usefixtures("three_endpoints", "verbs")
def test_an_endpoint_that_cannot_be_deleted_does_not_save_the_others(monkeypatch, capsys):
    def delete(_, name, wait):
        if name == "expired":
            raise AwsRefused("no")

    monkeypatch.setattr("launcher.deployment.delete.delete", delete)
    assert cli.main(["endpoints", "reap", "--idle", "6h"]) == AwsRefused.exit_code
    printed = capsys.readouterr()
    assert printed.out == "-> deleted idle: no invocation for 6:00:00\n"
    assert printed.err == "error: expired is still there: no\n"

"""Back to what an endpoint served before."""

from datetime import UTC, datetime, timedelta

import pytest

from launcher import cli
from launcher.deployment import deploy, rollback
from launcher.deployment.tags import EXPIRES_TAG, PREVIOUS_TAG
from launcher.errors import ConfigError, JobFailed
from launcher.jobs import alarms

ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/digits"
MISSING = {"Error": {"Code": "ValidationException", "Message": "Could not find"}}
NOW = datetime.now(UTC)


def test_after_an_update_the_way_back_is_noted_and_taken(project, canned, sent, described, yaml):
    made = project("endpoint.ttl=4h", yaml=yaml)
    canned("AddTags", {"Tags": []})
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    canned("DescribeEndpoint", described(EndpointConfigName="new"))
    canned("ListTags", {"Tags": [{"Key": PREVIOUS_TAG, "Value": "old"}]})
    canned("DescribeEndpointConfig", {"EndpointConfigName": "old"})
    deploy.finish(made, deploy.Plan("digits", "new", "old", ()))
    (tags,) = [body["Tags"] for name, body in sent if name == "AddTags"]
    by_key = {tag["Key"]: tag["Value"] for tag in tags}
    assert by_key[PREVIOUS_TAG] == "old"
    assert datetime.fromisoformat(by_key[EXPIRES_TAG]) > NOW + timedelta(hours=3)
    back = rollback.begin(made, "digits")
    assert (back.config_name, back.previous) == ("old", "new")
    assert [body["EndpointConfigName"] for name, body in sent if name == "UpdateEndpoint"] == ["old"]


def test_without_an_update_there_is_no_way_back(project, canned, described, yaml):
    canned("DescribeEndpoint", described())
    canned("ListTags", {"Tags": []})
    with pytest.raises(ConfigError, match="there is nothing to go back to"):
        rollback.begin(project(yaml=yaml), "digits")


def test_an_update_that_was_taken_back_needs_no_way_back(project, canned, described, yaml):
    canned("DescribeEndpoint", described())
    canned("ListTags", {"Tags": [{"Key": PREVIOUS_TAG, "Value": "old"}]})
    with pytest.raises(ConfigError, match="serves old already; its last update was taken back"):
        rollback.begin(project(yaml=yaml), "digits")


def test_a_way_back_that_was_deleted_is_named(project, canned, described, yaml):
    canned("DescribeEndpoint", described())
    canned("ListTags", {"Tags": [{"Key": PREVIOUS_TAG, "Value": "older"}]})
    canned("DescribeEndpointConfig", MISSING)
    with pytest.raises(ConfigError, match="the configuration older has been deleted"):
        rollback.begin(project(yaml=yaml), "digits")


def test_an_endpoint_that_cannot_go_back_now_says_why(project, canned, described, yaml):
    reasons = {
        "Creating": "is Creating for the first time: there is nothing to go back to; `python -m launcher delete",
        "Failed": "is Failed: it serves nothing and cannot be updated; deploy the model you want",
        "Deleting": "is being deleted",
        "RollingBack": "is RollingBack already; `python -m launcher attach digits` waits for it",
        "SystemUpdating": "SageMaker maintains it; try again",
    }
    canned("DescribeEndpoint", *(described(EndpointStatus=status) for status in reasons))
    made = project(yaml=yaml)
    for reason in reasons.values():
        with pytest.raises(ConfigError, match=reason):
            rollback.begin(made, "digits")


@pytest.fixture
def update_under_way(aws, canned, described):
    """An update from `old` to `new`, watched by an alarm of somebody's, and by one of ours where that is asked for."""

    def make(*then, description="somebody's"):
        alarm = {"Namespace": "n", "MetricName": "m", "Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1}
        alarm |= {"Threshold": 1.0, "ComparisonOperator": "GreaterThanThreshold", "AlarmDescription": description}
        aws.call("cloudwatch", "PutMetricAlarm", AlarmName="digits-main-errors", **alarm)
        members = {
            "EndpointStatus": "Updating",
            "PendingDeploymentSummary": {"EndpointConfigName": "new"},
            "LastDeploymentConfig": {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "digits-main-errors"}]}},
        }
        canned("DescribeEndpoint", described(**members), *then)
        canned("UpdateEndpoint", {"EndpointArn": ARN})
        canned("AddTags", {"Tags": []})

    return make


def states(aws):
    return {item["AlarmName"]: item["StateValue"] for item in aws.call("cloudwatch", "DescribeAlarms")["MetricAlarms"]}


def test_an_update_under_way_is_taken_back_by_our_own_alarm(project, update_under_way, described, yaml, aws, sent):
    update_under_way(described(), description=alarms.DESCRIPTION.format("digits"))
    made = project(yaml=yaml)
    back = rollback.begin(made, "digits", wait=False)
    assert states(aws) == {"digits-main-errors": "ALARM"}
    assert (back.config_name, back.previous) == ("old", "new")
    rollback.finish(made, back)
    assert "UpdateEndpoint" not in [name for name, _ in sent]
    (body,) = [body for name, body in sent if name == "AddTags"]
    assert body["Tags"] == [{"Key": PREVIOUS_TAG, "Value": "new"}]


def test_an_update_that_nothing_can_stop_goes_back_when_it_has_ended(
    project, update_under_way, described, yaml, aws, sent
):
    update_under_way()
    made, followed = project(yaml=yaml), iter([described(EndpointConfigName="new"), described()])
    rollback.finish(made, rollback.begin(made, "digits"), lambda *_: next(followed))
    assert states(aws)["digits-main-errors"] != "ALARM"  # somebody else's
    assert [body["EndpointConfigName"] for name, body in sent if name == "UpdateEndpoint"] == ["old"]


def test_an_update_that_nothing_can_stop_has_to_be_waited_for(project, update_under_way, yaml, sent):
    update_under_way()
    with pytest.raises(ConfigError, match="without --no-wait, `rollback` waits for the end and goes back then"):
        rollback.begin(project(yaml=yaml), "digits", wait=False)
    assert "UpdateEndpoint" not in [name for name, _ in sent]


def test_twice_in_a_row_goes_forth_again(project, canned, described, yaml, sent):
    canned("UpdateEndpoint", {"EndpointArn": ARN})
    canned("AddTags", {"Tags": []})
    canned("DescribeEndpointConfig", {"EndpointConfigName": "any"})
    made = project(yaml=yaml)
    canned(
        "DescribeEndpoint",
        described(EndpointConfigName="new"),
        described(),
        described(),
        described(EndpointConfigName="new"),
    )
    canned("ListTags", *({"Tags": [{"Key": PREVIOUS_TAG, "Value": value}]} for value in ("old", "new")))
    for _ in range(2):
        back = rollback.begin(made, "digits")
        rollback.finish(made, back, lambda *_: described(EndpointConfigName=back.config_name))  # noqa: B023
        assert [body["Tags"][0]["Value"] for name, body in sent if name == "AddTags"][-1] == back.previous
    assert [body["EndpointConfigName"] for name, body in sent if name == "UpdateEndpoint"] == ["old", "new"]


def test_a_way_back_that_fails_is_a_failure(project, described, yaml):
    back = rollback.WayBack("digits", "old", "new")
    third = described(EndpointConfigName="third", FailureReason="no room")
    with pytest.raises(JobFailed, match="serves third and not old: no room"):
        rollback.finish(project(yaml=yaml), back, lambda *_: third)


def test_another_endpoint_that_goes_back_leaves_the_projects_scaling_alone(project, canned, described, yaml, sent):
    canned("AddTags", {"Tags": []})
    made = project("endpoint.scaling={max: 3, target: 50}", yaml=yaml)
    rollback.finish(made, rollback.WayBack("other", "old", "new"), lambda *_: described(EndpointName="other"))
    assert [name for name, _ in sent] == ["AddTags"]


def test_scaling_of_variants_that_went_stays_as_it_is_and_is_told(project, canned, described, yaml, sent, caplog):
    canned("AddTags", {"Tags": []})
    made = project("endpoint.scaling={max: 3, target: 50}", yaml=yaml)
    gone = described(ProductionVariants=[{"VariantName": "before"}])
    rollback.finish(made, rollback.WayBack("digits", "old", "new"), lambda *_: gone)
    assert "scaling stays as it is: variants main are not there any more" in caplog.text
    rollback.finish(made, rollback.WayBack("digits", "old", "new"), lambda *_: described())
    assert "RegisterScalableTarget" in [name for name, _ in sent]


def test_the_verb_says_where_it_went_and_where_it_is_going(aws, canned, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    monkeypatch.setattr(rollback, "begin", lambda *_, **__: rollback.WayBack("slipway", "old", "new"))
    for name in ("finish", "note"):
        monkeypatch.setattr(rollback, name, lambda *_: None)
    assert cli.main(["rollback", "--dry-run"]) == 0
    assert cli.main(["rollback"]) == 0
    assert "serves old again; `rollback` once more returns to new" in capsys.readouterr().out
    assert cli.main(["rollback", "--no-wait"]) == 0
    assert "-> endpoint slipway goes back to old: `python -m launcher attach slipway` waits" in capsys.readouterr().out

"""Search finds training jobs by name, tag, metric and hyperparameter."""

import pytest
from botocore.exceptions import ClientError

from launcher.local.errors import ValidationException
from launcher.local.search import matches, search

JOB = {
    "TrainingJobName": "digits-1",
    "TrainingJobStatus": "Completed",
    "CreationTime": 1767225600.0,  # 2026-01-01T00:00:00Z
    "HyperParameters": {"lr": "0.1", "optimizer.name": "adam"},
    "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2},
    "Tags": [{"Key": "team", "Value": "vision"}],
    "FinalMetricDataList": [{"MetricName": "validation:accuracy", "Value": 0.93}],
    "InputDataConfig": [{"ChannelName": "train", "InputMode": "Pipe"}, {"ChannelName": "test", "InputMode": "File"}],
}


def where(name, operator="Equals", value=None):
    return {"Name": name, "Operator": operator, **({} if value is None else {"Value": value})}


@pytest.mark.parametrize(
    "condition",
    [
        where("TrainingJobName", "Contains", "DIGITS"),
        where("TrainingJobStatus", "Equals", "completed"),
        where("TrainingJobStatus", "In", "Failed, Completed"),
        where("Tags.team", "Equals", "vision"),
        where("Tags.owner", "NotExists"),
        where("Tags.owner", "NotEquals", "me"),
        where("Metrics.validation:accuracy", "GreaterThan", "0.9"),
        where("HyperParameters.lr", "LessThanOrEqualTo", "0.10"),
        where("HyperParameters.optimizer.name", "Equals", "adam"),
        where("ResourceConfig.InstanceCount", "GreaterThanOrEqualTo", "2"),
        where("CreationTime", "GreaterThan", "2025-12-31T23:59:59Z"),
        where("CreationTime", "LessThan", "2026-01-01T00:00:01"),
        where("TrainingJobName.no.such", "NotExists"),
    ],
)
def test_a_job_is_found_by_any_member(condition):
    assert matches(JOB, {"Filters": [condition]})
    opposite = {"NotExists": "Exists", "NotEquals": "Equals", "GreaterThan": "LessThan"}.get(condition["Operator"])
    if opposite:
        assert not matches(JOB, {"Filters": [{**condition, "Operator": opposite}]})


def test_filters_are_all_to_hold_unless_one_will_do():
    good, bad = where("Tags.team", value="vision"), where("Tags.team", value="text")
    assert not matches(JOB, {"Filters": [good, bad]})
    assert matches(JOB, {"Filters": [good, bad], "Operator": "Or"})
    assert matches(JOB, {"SubExpressions": [{"Filters": [bad, good], "Operator": "Or"}, {"Filters": [good]}]})
    assert matches(JOB, {"Operator": "Or"})


def test_a_nested_filter_is_about_one_item_of_a_list():
    def nested(name, mode):
        filters = [where("InputDataConfig.ChannelName", value=name), where("InputDataConfig.InputMode", value=mode)]
        return {"NestedFilters": [{"NestedPropertyName": "InputDataConfig", "Filters": filters}]}

    assert matches(JOB, nested("train", "Pipe"))
    assert not matches(JOB, nested("train", "File"))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (where("TrainingJobName", "Equals"), "with operator Equals needs a Value"),
        (where("TrainingJobName", "GreaterThan", "a"), "GreaterThan is for numbers and times"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(condition, message):
    with pytest.raises(ValidationException, match=message):
        matches(JOB, {"Filters": [condition]})


def test_results_are_sorted_by_any_member_and_those_without_it_come_last():
    jobs = [
        {"CreationTime": number, "FinalMetricDataList": metric(value)} for number, value in enumerate((3, None, 20))
    ]
    assert [job["CreationTime"] for job in search(jobs, {"SortBy": "Metrics.loss"})] == [2, 0, 1]
    assert [job["CreationTime"] for job in search(jobs, {})] == [2, 1, 0]
    assert [job["CreationTime"] for job in search(jobs, {"SortOrder": "Ascending"})] == [0, 1, 2]


def metric(value):
    return [] if value is None else [{"MetricName": "loss", "Value": value}]


def test_boto3_pages_through_what_was_found(aws, training_request, unique):
    team = unique("team")
    for number in range(3):
        aws.train(training_request({"number": str(number)}, Tags=[{"Key": "team", "Value": team}]))
    found = list(
        aws.sagemaker.get_paginator("search").paginate(
            Resource="TrainingJob",
            SearchExpression={"Filters": [{"Name": "Tags.team", "Operator": "Equals", "Value": team}]},
            SortBy="HyperParameters.number",
            SortOrder="Ascending",
            PaginationConfig={"PageSize": 2},
        )
    )
    assert [len(page["Results"]) for page in found] == [2, 1]
    assert found[0]["TotalHits"]["Value"] == 3
    jobs = [item["TrainingJob"] for page in found for item in page["Results"]]
    assert [job["HyperParameters"]["number"] for job in jobs] == ["0", "1", "2"]
    assert jobs[0]["Tags"] == [{"Key": "team", "Value": team}]
    with pytest.raises(ClientError, match="searches TrainingJob only, not Endpoint"):
        aws.sagemaker.search(Resource="Endpoint")

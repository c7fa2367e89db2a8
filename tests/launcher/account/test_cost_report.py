from datetime import UTC, datetime, timedelta

import pytest

from launcher.account.cost import Prices
from launcher.account.cost_report import Billing, by_tag, endpoint_spent, report, training_spent, transform_spent
from launcher.errors import AwsRefused

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SINCE = NOW - timedelta(days=7)
ARN = "arn:aws:sagemaker:us-east-1:123456789012"
PRICES = Prices("a test", "2026-01", {"us-east-1": {"instances": {"ml.m5.xlarge": 0.25, "ml.g5.xlarge": 1.5}}})
BILLING = Billing(PRICES, "us-east-1", SINCE, NOW)


def training(**more):
    return {
        "TrainingJobName": "digits-1",
        "TrainingJobArn": f"{ARN}:training-job/digits-1",
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 30},
        "TrainingTimeInSeconds": 7200,
        "BillableTimeInSeconds": 7200,
        **more,
    }


def test_a_training_job_costs_its_billed_seconds_times_its_instances():
    found = training_spent(training(), "a", BILLING)
    assert (found.instance_hours, found.usd, found.saved_usd) == (4, 6.0, None)


def test_with_spot_the_billed_seconds_are_fewer_and_the_saving_is_shown():
    found = training_spent(training(EnableManagedSpotTraining=True, BillableTimeInSeconds=1800), "a", BILLING)
    assert (found.usd, found.saved_usd) == (1.5, 4.5)


def test_instance_groups_are_billed_together():
    groups = [
        {"InstanceGroupName": "gpu", "InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
        {"InstanceGroupName": "cpu", "InstanceType": "ml.m5.xlarge", "InstanceCount": 2},
    ]
    assert training_spent(training(ResourceConfig={"InstanceGroups": groups}), "a", BILLING).usd == 4.0


def test_a_warm_pool_is_billed_while_it_waits():
    kept = {"Status": "Terminated", "ResourceRetainedBillableTimeInSeconds": 3600}
    assert training_spent(training(WarmPoolStatus=kept), "a", BILLING).usd == 9.0


def test_a_running_job_is_billed_from_its_start_until_now():
    running = training(TrainingStartTime=NOW - timedelta(hours=1))
    del running["TrainingTimeInSeconds"], running["BillableTimeInSeconds"]
    assert training_spent(running, "a", BILLING).usd == 3.0


def test_a_job_that_never_started_costs_nothing():
    waiting = training()
    del waiting["TrainingTimeInSeconds"], waiting["BillableTimeInSeconds"]
    assert training_spent(waiting, "a", BILLING).usd == 0


def test_an_unknown_price_stays_unknown_and_the_hours_are_told():
    resources = {"InstanceType": "ml.p5.48xlarge", "InstanceCount": 1}
    found = training_spent(training(ResourceConfig=resources, EnableManagedSpotTraining=True), "a", BILLING)
    assert (found.instance_hours, found.usd, found.saved_usd) == (2, None, None)


def test_a_transform_job_costs_from_start_to_end():
    description = {
        "TransformJobName": "batch",
        "TransformResources": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 4},
        "TransformStartTime": NOW - timedelta(hours=3),
        "TransformEndTime": NOW - timedelta(hours=1),
    }
    assert transform_spent(description, "a", BILLING).usd == 2.0


def test_an_endpoint_costs_from_its_creation_or_the_start_of_the_report():
    configuration = {
        "ProductionVariants": [{"VariantName": "main", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}],
        "ShadowProductionVariants": [{"VariantName": "new", "InstanceType": "ml.g5.xlarge", "InitialInstanceCount": 1}],
    }
    endpoint = {
        "EndpointName": "digits",
        "CreationTime": NOW - timedelta(hours=10),
        "ProductionVariants": [{"VariantName": "main", "CurrentInstanceCount": 2}],
        "ShadowProductionVariants": [{"VariantName": "new", "CurrentInstanceCount": 1}],
    }
    assert endpoint_spent(endpoint, configuration, "a", BILLING).usd == 20.0
    old = {**endpoint, "CreationTime": NOW - timedelta(days=100)}
    assert endpoint_spent(old, configuration, "a", BILLING).usd == 2.0 * 7 * 24


def test_a_serverless_variant_has_no_instances():
    configuration = {"ProductionVariants": [{"VariantName": "main", "ServerlessConfig": {"MaxConcurrency": 5}}]}
    endpoint = {"EndpointName": "digits", "CreationTime": SINCE, "ProductionVariants": [{"VariantName": "main"}]}
    found = endpoint_spent(endpoint, configuration, "a", BILLING)
    assert (found.instance_hours, found.usd) == (0, 0)


def test_jobs_are_added_up_by_the_value_of_a_tag():
    items = [
        training_spent(training(), "vision", BILLING),
        training_spent(training(EnableManagedSpotTraining=True, BillableTimeInSeconds=1800), "vision", BILLING),
        training_spent(training(ResourceConfig={"InstanceType": "ml.x", "InstanceCount": 1}), "vision", BILLING),
        training_spent(training(BillableTimeInSeconds=36000), "text", BILLING),
    ]
    text, vision = by_tag(items)
    assert (text.tag, text.usd) == ("text", 30.0)
    assert (vision.count, vision.usd, vision.saved_usd, vision.unknown) == (3, 7.5, 4.5, 1)


def test_the_report_asks_for_every_page_and_every_tag(aws, canned):
    canned(
        "ListTrainingJobs",
        {"TrainingJobSummaries": [training()], "NextToken": "more"},
        {"TrainingJobSummaries": [training(TrainingJobName="digits-2")]},
    )
    canned("DescribeTrainingJob", training(), training(TrainingJobName="digits-2", BillableTimeInSeconds=72000))
    canned("ListTransformJobs", {"TransformJobSummaries": []})
    canned("ListEndpoints", {"Endpoints": [{"EndpointName": "digits", "EndpointArn": f"{ARN}:endpoint/digits"}]})
    variant = {"VariantName": "main", "InstanceType": "ml.m5.xlarge", "InitialInstanceCount": 1}
    canned("DescribeEndpoint", {"EndpointName": "digits", "EndpointConfigName": "c", "CreationTime": SINCE})
    canned("DescribeEndpointConfig", {"ProductionVariants": [variant]})
    canned("ListTags", {"Tags": [{"Key": "owner", "Value": "ada"}]}, {"Tags": []})
    found = report(aws, BILLING, "owner")
    assert [(item.name, item.tag, item.usd) for item in found] == [
        ("digits-2", "(none)", 60.0),
        ("digits", "(none)", 42.0),
        ("digits-1", "ada", 6.0),
    ]


def test_a_refused_report_says_who_refused(aws, canned):
    canned("ListTrainingJobs", {"Error": {"Code": "AccessDeniedException", "Message": "no"}})
    with pytest.raises(AwsRefused, match="ListTrainingJobs was refused: AccessDeniedException"):
        report(aws, BILLING, "owner")

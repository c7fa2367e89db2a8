"""Requests, updates and deletions that a server which was killed had begun."""

import os
import signal

import pytest

ROLE = "arn:aws:iam::123456789012:role/SageMakerRole"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/any:1"
BUCKET = "test-bucket"
REQUESTS = 6


def deploy(aws, name, members=None, **environment):
    container = {"Image": IMAGE, "Environment": environment}
    aws.sagemaker.create_model(ModelName=name, ExecutionRoleArn=ROLE, PrimaryContainer=container)
    variant = {"VariantName": "A", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    aws.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **(members or {}))
    aws.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    assert aws.wait_in_service(name)["EndpointStatus"] == "InService"


def asynchronous(**output):
    paths = {"S3OutputPath": f"s3://{BUCKET}/good", "S3FailurePath": f"s3://{BUCKET}/bad"}
    limits = {"MaxConcurrentInvocationsPerInstance": 2}
    return {"AsyncInferenceConfig": {"OutputConfig": {**paths, **output}, "ClientConfig": limits}}


def invoke(aws, name, body, number):
    runtime = aws.client("sagemaker-runtime")
    return runtime.invoke_endpoint_async(EndpointName=name, Body=body, InferenceId=f"id-{number}")


def kill(aws):
    os.kill(aws.server.pid, signal.SIGKILL)


def test_queued_and_running_requests_outlive_a_server_that_is_killed(own_server):
    aws = own_server()
    deploy(aws, "queue", asynchronous())
    for number in range(REQUESTS):
        invoke(aws, "queue", b"sleep 2" if number < 2 else b"n%d" % number, number)
    # two run, and the others wait for them
    assert len(list((aws.server.home / "async/queue").glob("*.json"))) == REQUESTS
    kill(aws)

    again = own_server()
    found = again.wait_for(lambda: sorted(again.keys("good/") + again.keys("bad/")), lambda keys: len(keys) == REQUESTS)
    assert found == [f"id-{number}.out" for number in range(REQUESTS)]  # all of them good
    assert again.get(f"s3://{BUCKET}/good/id-5.out") == b"N5"
    again.wait_for(lambda: list((again.server.home / "async/queue").iterdir()), lambda left: not left)


@pytest.mark.slow
def test_what_waits_for_an_endpoint_that_does_not_come_back_gets_its_failure_object(own_server):
    aws = own_server()
    flag = aws.server.home / "broken"
    deploy(aws, "lost", asynchronous(), BREAK_IF=str(flag))
    for number in range(3):
        invoke(aws, "lost", b"sleep 60", number)
    flag.touch()
    kill(aws)

    again = own_server()
    assert again.wait_in_service("lost")["EndpointStatus"] == "Failed"
    again.wait_for(lambda: again.keys("bad/"), lambda keys: len(keys) == 3)
    assert b"could not be started" in again.get(f"s3://{BUCKET}/bad/id-0-error.out")


@pytest.mark.slow
def test_a_server_that_goes_down_leaves_its_queue_to_the_next(own_server):
    from launcher.local import client

    aws = own_server()
    deploy(aws, "patient", asynchronous())
    for number in range(REQUESTS):
        invoke(aws, "patient", b"sleep 1", number)
    client.down(aws.server.home)
    again = own_server()
    again.wait_for(lambda: again.keys("good/"), lambda keys: len(keys) == REQUESTS)
    assert again.keys("bad/") == []


@pytest.mark.slow
def test_a_killed_servers_updates_and_deletions_have_a_true_end(own_server):
    aws = own_server()
    for name in ("updating", "deleting"):
        deploy(aws, name, PREFIX="old ", STOP_SECONDS="4")
    aws.sagemaker.create_model(
        ModelName="slow",
        ExecutionRoleArn=ROLE,
        PrimaryContainer={"Image": IMAGE, "Environment": {"LOAD_SECONDS": "60"}},
    )
    variant = {"VariantName": "A", "ModelName": "slow", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    aws.sagemaker.create_endpoint_config(EndpointConfigName="next", ProductionVariants=[variant])
    aws.sagemaker.update_endpoint(EndpointName="updating", EndpointConfigName="next")
    aws.sagemaker.delete_endpoint(EndpointName="deleting")
    aws.wait_for(
        lambda: aws.sagemaker.describe_endpoint(EndpointName="updating"),
        lambda found: "PendingDeploymentSummary" in found,
    )
    assert aws.sagemaker.describe_endpoint(EndpointName="deleting")["EndpointStatus"] == "Deleting"
    kill(aws)

    again = own_server()
    described = again.wait_in_service("updating")
    assert described["EndpointConfigName"] == "updating"
    assert described["FailureReason"] == (
        "The local SageMaker ended while the endpoint was updated to next; it serves updating again."
    )
    assert "PendingDeploymentSummary" not in described
    assert again.invoke("updating", b"x")["Body"].read() == b"old X"
    assert [item["EndpointName"] for item in again.sagemaker.list_endpoints()["Endpoints"]] == ["updating"]


@pytest.mark.slow
@pytest.mark.parametrize(("body", "status"), [(b"hello", "Completed"), (b"status 400", "Failed")])
def test_topics_are_told_how_a_request_ended(own_server, body, status):
    import json

    aws = own_server()
    sns, sqs = aws.client("sns"), aws.client("sqs")
    topic = sns.create_topic(Name="ended")["TopicArn"]
    queue = sqs.create_queue(QueueName="messages")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    deploy(aws, "told", asynchronous(NotificationConfig={"SuccessTopic": topic, "ErrorTopic": topic}))
    invoke(aws, "told", body, 1)
    (received,) = aws.wait_for(lambda: sqs.receive_message(QueueUrl=queue).get("Messages", []), bool)
    message = json.loads(json.loads(received["Body"])["Message"])
    assert (message["invocationStatus"], message["inferenceId"]) == (status, "id-1")
    assert message["responseParameters"]["outputLocation"].startswith(f"s3://{BUCKET}/")

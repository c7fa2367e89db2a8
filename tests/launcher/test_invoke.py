"""One request to an endpoint, or many to measure it."""

import io
from pathlib import Path

import pytest
from botocore.exceptions import EventStreamError
from botocore.response import StreamingBody

from launcher import cli, invoke
from launcher.errors import AwsRefused, ConfigError, JobFailed, TimedOut

REQUEST = invoke.Request("digits", b"[1]", "application/json")


def answer(body):
    return {"Body": StreamingBody(io.BytesIO(body), len(body)), "ContentType": "application/json"}


def test_the_answer_carries_body_type_and_time(aws, canned, sent):
    canned("InvokeEndpoint", {**answer(b"[7]"), "InvokedProductionVariant": "main"}, service="sagemaker-runtime")
    got = invoke.invoke(aws, invoke.Request("digits", b"[1]", "application/json", target_variant="main"))
    assert (got.body, got.content_type, got.variant) == (b"[7]", "application/json", "main")
    assert got.seconds > 0
    assert sent[-1][1] == {
        "EndpointName": "digits",
        "Body": b"[1]",
        "ContentType": "application/json",
        "TargetVariant": "main",
    }


@pytest.mark.parametrize(
    ("status", "told"), [(400, "400: no rows$"), (500, "500: no rows; why: `python -m launcher explain digits`$")]
)
def test_the_containers_own_words_are_told(aws, canned, status, told):
    error = {
        "Error": {"Code": "ModelError", "Message": "long"},
        "OriginalStatusCode": status,
        "OriginalMessage": "no rows",
    }
    canned("InvokeEndpoint", error, service="sagemaker-runtime")
    with pytest.raises(JobFailed, match=f"^the container answered {told}"):
        invoke.invoke(aws, REQUEST)


@pytest.mark.parametrize(
    ("code", "told"),
    [("ValidationError", "no; why: `python -m launcher explain digits`$"), ("ServiceUnavailable", "no$")],
)
def test_another_refusal_stays_one(aws, canned, code, told):
    canned("InvokeEndpoint", {"Error": {"Code": code, "Message": "no"}}, service="sagemaker-runtime")
    with pytest.raises(AwsRefused, match=f"{code}: {told}"):
        invoke.invoke(aws, REQUEST)


@pytest.mark.parametrize(
    ("mode", "megabytes", "message"),
    [
        ("serverless", 5, r"a serverless endpoint takes 4,194,304 .4 MB.; take a real-time.*25 MB.*async.*1024 MB"),
        ("real-time", 26, r"a real-time endpoint takes .*25 MB.; take an asynchronous one, with endpoint.async"),
        ("asynchronous", 1025, "no endpoint takes more than 1024 MB; split it, and let a transform job send the parts"),
    ],
)
def test_a_body_over_the_modes_limit_is_refused_with_what_takes_more(mode, megabytes, message):
    class Body(bytes):
        def __len__(self):
            return megabytes * 2**20

    with pytest.raises(ConfigError, match=message):
        invoke.check_size(invoke.Request("digits", Body(), "text/csv"), mode)
    invoke.check_size(invoke.Request("digits", b"x" * 100, "text/csv"), mode)


@pytest.mark.parametrize(
    ("described", "mode"),
    [
        ({"ProductionVariants": [{"VariantName": "main"}]}, "real-time"),
        ({"ProductionVariants": [{"VariantName": "main", "CurrentServerlessConfig": {}}]}, "serverless"),
        ({"AsyncInferenceConfig": {}}, "asynchronous"),
        ({}, "real-time"),  # it is being created
    ],
)
def test_the_service_says_how_an_endpoint_is_asked(described, mode, aws, canned):
    canned("DescribeEndpoint", described)
    assert invoke.mode_of(aws, "digits") == mode


def test_the_parts_of_a_stream_come_one_by_one(aws, canned):
    parts = [{"PayloadPart": {"Bytes": b"one "}}, {"PayloadPart": {"Bytes": b"two"}}]
    canned("InvokeEndpointWithResponseStream", {"Body": iter(parts)}, service="sagemaker-runtime")
    assert list(invoke.stream(aws, REQUEST)) == [b"one ", b"two"]


def test_a_stream_that_breaks_off_is_a_failure(aws, canned):
    def broken():
        yield {"PayloadPart": {"Bytes": b"one"}}
        raise EventStreamError({"Error": {"Code": "ModelStreamError", "Message": "gone"}}, "stream")

    canned("InvokeEndpointWithResponseStream", {"Body": broken()}, service="sagemaker-runtime")
    with pytest.raises(JobFailed, match="the container answered with an error: gone"):
        list(invoke.stream(aws, REQUEST))


@pytest.fixture
def queue(aws, canned):
    """An asynchronous endpoint that has answered already: with success, failure or not yet."""
    aws.ensure_bucket("bucket")

    def answered(key=None):
        if key:
            aws.call("s3", "PutObject", Bucket="bucket", Key=key, Body=b"answer")
        return aws

    locations = {"OutputLocation": "s3://bucket/out/1.out", "FailureLocation": "s3://bucket/fail/1.out"}
    canned("InvokeEndpointAsync", locations, service="sagemaker-runtime")
    return answered


def test_an_asynchronous_answer_is_fetched(queue):
    location, answer = invoke.invoke_async(queue("out/1.out"), REQUEST, "s3://bucket/in", 5)
    assert (location, answer) == ("s3://bucket/out/1.out", b"answer")


def test_an_asynchronous_answer_need_not_be_waited_for(queue, aws):
    assert invoke.invoke_async(queue(), REQUEST, "s3://bucket/in", None) == ("s3://bucket/out/1.out", None)
    (request,) = aws.call("s3", "ListObjectsV2", Bucket="bucket")["Contents"]
    assert request["Key"].startswith("in/")


def test_an_asynchronous_failure_is_told(queue):
    with pytest.raises(JobFailed, match="the container failed on the request: answer"):
        invoke.invoke_async(queue("fail/1.out"), REQUEST, "s3://bucket/in", 5)


def test_an_asynchronous_answer_that_does_not_come_has_an_end(queue):
    with pytest.raises(TimedOut, match=r"no answer after 0 s; it will lie at s3://bucket/out/1\.out"):
        invoke.invoke_async(queue(), REQUEST, "s3://bucket/in", 0)


def test_an_answer_that_may_not_be_read_is_a_refusal(aws, canned):
    canned("GetObject", {"Error": {"Code": "AccessDenied", "Message": "no"}}, service="s3")
    canned("InvokeEndpointAsync", {"OutputLocation": "s3://bucket/1"}, service="sagemaker-runtime")
    aws.ensure_bucket("bucket")
    with pytest.raises(AwsRefused, match="GetObject was refused: AccessDenied"):
        invoke.invoke_async(aws, REQUEST, "s3://bucket/in", 5)


@pytest.mark.parametrize(
    ("name", "content_type"), [("a.PNG", "image/png"), ("a.jsonl", "application/jsonlines"), ("a.html", "text/html")]
)
def test_the_content_type_follows_the_ending(name, content_type):
    assert invoke.content_type_of(Path(name)) == content_type


@pytest.fixture
def verbs(aws, canned, monkeypatch, tmp_path):
    """A project directory whose account is moto's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    (tmp_path / "row.json").write_text("[1]")
    (tmp_path / "launcher.yaml").write_text("name: digits\nrole: arn:aws:iam::123456789012:role/jobs\n")
    canned("DescribeEndpoint", {"Error": {"Code": "AccessDeniedException", "Message": "no"}})  # invoking is enough


@pytest.mark.usefixtures("verbs")
def test_the_verb_prints_the_answer_as_it_is(canned, capfdbinary):
    canned("InvokeEndpoint", answer(b"[7]"), service="sagemaker-runtime")
    assert cli.main(["invoke", "row.json"]) == 0
    assert capfdbinary.readouterr().out == b"[7]\n"


@pytest.mark.usefixtures("verbs")
def test_the_verb_prints_a_stream(canned, capfdbinary):
    parts = [{"PayloadPart": {"Bytes": b"one "}}, {"PayloadPart": {"Bytes": b"two\n"}}]
    canned("InvokeEndpointWithResponseStream", {"Body": iter(parts)}, service="sagemaker-runtime")
    assert cli.main(["invoke", "row.json", "--stream"]) == 0
    assert capfdbinary.readouterr().out == b"one two\n"


@pytest.mark.usefixtures("verbs")
def test_the_verb_queues_a_request_where_the_endpoint_is_asynchronous(canned, capfdbinary, aws):
    aws.ensure_bucket("bucket")
    aws.call("s3", "PutObject", Bucket="bucket", Key="1.out", Body=b"[7]")
    canned("InvokeEndpointAsync", {"OutputLocation": "s3://bucket/1.out"}, service="sagemaker-runtime")
    asynchronous = ["--set", "endpoint.asynchronous=true"]
    assert cli.main(["invoke", "row.json", *asynchronous]) == 0
    assert capfdbinary.readouterr().out == b"[7]\n"
    assert cli.main(["invoke", "row.json", *asynchronous, "--no-wait"]) == 0
    assert capfdbinary.readouterr().out == b"-> queued; the answer will lie at s3://bucket/1.out\n"
    assert cli.main(["invoke", "row.json", *asynchronous, "--timeout", "soon"]) == 2


@pytest.mark.usefixtures("verbs")
def test_the_models_of_a_multi_model_endpoint_are_kept(aws, capsys, tmp_path):
    aws.ensure_bucket("bucket")
    (tmp_path / "m.tar.gz").write_bytes(b"x" * 10)
    options = ["--set", "endpoint.multi_model=true", "--set", "endpoint.model=s3://bucket/models"]
    assert cli.main(["endpoints", "models", "add", "a.tar.gz", "m.tar.gz", *options]) == 0
    assert "next: python -m launcher invoke FILE --target-model a.tar.gz" in capsys.readouterr().out
    assert cli.main(["endpoints", "models", "ls", *options]) == 0
    assert "a.tar.gz  10 B" in capsys.readouterr().out
    assert cli.main(["endpoints", "models", "rm", "a.tar.gz", *options]) == 0
    assert cli.main(["endpoints", "models", "ls", *options]) == 0
    assert "none" in capsys.readouterr().out
    assert cli.main(["endpoints", "models", "ls"]) == 2
    assert "set endpoint.multi_model: true" in capsys.readouterr().err
    for verb in (["ls"], ["add", "a", "m.tar.gz"], ["rm", "a"]):
        assert cli.main(["endpoints", "models", *verb, "--dry-run", *options]) == 0

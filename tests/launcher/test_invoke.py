"""One request to an endpoint, or many to measure it."""

import io
from pathlib import Path

import pytest
from botocore.response import StreamingBody

from launcher import invoke
from launcher.errors import AwsRefused, ConfigError, JobFailed

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


def test_the_containers_own_words_are_told(aws, canned):
    error = {
        "Error": {"Code": "ModelError", "Message": "long"},
        "OriginalStatusCode": 400,
        "OriginalMessage": "no rows",
    }
    canned("InvokeEndpoint", error, service="sagemaker-runtime")
    with pytest.raises(JobFailed, match="the container answered 400: no rows"):
        invoke.invoke(aws, REQUEST)


def test_another_refusal_stays_one(aws, canned):
    canned("InvokeEndpoint", {"Error": {"Code": "ValidationError", "Message": "no"}}, service="sagemaker-runtime")
    with pytest.raises(AwsRefused, match="ValidationError"):
        invoke.invoke(aws, REQUEST)


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(aws, sent):
    with pytest.raises(ConfigError, match=r"use a transform job, or an asynchronous endpoint"):
        invoke.invoke(aws, invoke.Request("digits", b"x" * (25 * 1024 * 1024 + 1), "text/csv"))
    assert sent == []


def test_many_requests_are_measured(aws, monkeypatch):
    monkeypatch.setattr(invoke, "invoke", lambda *_: invoke.Answer(b"", "", "", 0.01))
    measured = invoke.measure(aws, REQUEST, repeat=20, concurrency=4)
    assert (measured.requests, measured.errors) == (20, 0)
    assert measured.p50_ms == pytest.approx(10)


def test_requests_that_fail_are_counted(aws, canned):
    canned("InvokeEndpoint", {"Error": {"Code": "ValidationError", "Message": "no"}}, service="sagemaker-runtime")
    with pytest.raises(JobFailed, match="none of 3 requests was answered"):
        invoke.measure(aws, REQUEST, repeat=3, concurrency=2)


def test_percentiles_are_those_of_the_answered():
    measured = invoke.summary([0.001 * n for n in range(1, 101)], 101, elapsed=10.0)
    assert measured.errors == 1
    assert measured.requests_per_second == 10
    assert measured.p50_ms == pytest.approx(50.5)
    assert measured.p99_ms == pytest.approx(99.01)
    assert measured.max_ms == pytest.approx(100)


@pytest.mark.parametrize(
    ("name", "content_type"), [("a.PNG", "image/png"), ("a.jsonl", "application/jsonlines"), ("a.html", "text/html")]
)
def test_the_content_type_follows_the_ending(name, content_type):
    assert invoke.content_type_of(Path(name)) == content_type

"""A build in CodeBuild is started, followed, and its digests are used from then on."""

import io
import json
import logging
import time
import zipfile

import pytest

from launcher import cli
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.images import codebuild

PUSHED = {
    "training": {"uri": "111122223333.dkr.ecr.us-east-1.amazonaws.com/t@sha256:" + "1" * 64, "region": "us-east-1"}
}
ID = "images:1"


def build(status="SUCCEEDED", **rest):
    return {"builds": [{"id": ID, "buildStatus": status, **rest}]}


def zipped(content):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("images.json", content)
    return target.getvalue()


@pytest.fixture
def bucket(aws):
    aws.ensure_bucket("bucket")
    return aws


def test_the_log_is_shown_until_the_build_ends(aws, canned, caplog):
    aws.call("logs", "CreateLogGroup", logGroupName="/aws/codebuild/images")
    aws.call("logs", "CreateLogStream", logGroupName="/aws/codebuild/images", logStreamName="1")
    events = [{"timestamp": int(time.time() * 1000), "message": "Step 1/9"}]
    stream = {"logGroupName": "/aws/codebuild/images", "logStreamName": "1"}
    aws.call("logs", "PutLogEvents", **stream, logEvents=events)
    logs = {"groupName": "/aws/codebuild/images", "streamName": "1"}
    replies = (build("IN_PROGRESS"), build("IN_PROGRESS", logs=logs), build(logs=logs))
    canned("BatchGetBuilds", *replies, service="codebuild")
    with caplog.at_level(logging.INFO, "launcher"):
        assert codebuild.follow(aws, ID, sleep=lambda _: None)["buildStatus"] == "SUCCEEDED"
    assert "Step 1/9" in caplog.text


def test_a_build_that_fails_names_its_phase(aws, canned):
    phase = {"phaseType": "BUILD", "phaseStatus": "FAILED", "contexts": [{"message": "exit status 5"}]}
    canned("BatchGetBuilds", build("FAILED", phases=[phase]), service="codebuild")
    with pytest.raises(JobFailed, match="the build images:1 is FAILED in the phase BUILD: exit status 5"):
        codebuild.follow(aws, ID)


@pytest.mark.parametrize(("key", "content"), [("b/images.json", "plain"), ("b", "zip")])
def test_the_artifact_is_read_plain_or_zipped(key, content, bucket):
    text = json.dumps(PUSHED)
    body = zipped(text) if content == "zip" else text.encode()
    bucket.call("s3", "PutObject", Bucket="bucket", Key=key, Body=body)
    artifacts = {"artifacts": {"location": "arn:aws:s3:::bucket/b"}}
    assert codebuild.pushed_images(bucket, artifacts) == PUSHED


def test_an_artifact_that_is_not_there_is_named(bucket):
    with pytest.raises(JobFailed, match=r"there is no images\.json at s3://bucket/b"):
        codebuild.pushed_images(bucket, {"artifacts": {"location": "arn:aws:s3:::bucket/b"}})
    with pytest.raises(AwsRefused, match="NoSuchBucket"):
        codebuild.pushed_images(bucket, {"artifacts": {"location": "arn:aws:s3:::elsewhere/b"}})
    with pytest.raises(ConfigError, match="keeps no artifacts"):
        codebuild.pushed_images(bucket, {})


def test_without_a_project_nothing_is_started(aws, sent):
    with pytest.raises(ConfigError, match=r"images\.codebuild_project is not set"):
        codebuild.start(aws, None)
    assert sent == []


def test_the_verb_leaves_digests_that_jobs_use(bucket, canned, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: bucket)
    bucket.call("s3", "PutObject", Bucket="bucket", Key="b/images.json", Body=json.dumps(PUSHED).encode())
    canned("StartBuild", {"build": {"id": ID}}, service="codebuild")
    canned("BatchGetBuilds", build(artifacts={"location": "arn:aws:s3:::bucket/b"}), service="codebuild")
    project = ["--set", "images.codebuild_project=images"]
    assert cli.main(["build", "--remote", *project]) == 0
    assert f"-> pushed {PUSHED['training']['uri']}" in capsys.readouterr().out
    assert cli.main(["train", "--dry-run", "--json", "--set", "name=digits"]) == 0
    (call,) = json.loads(capsys.readouterr().out)
    assert call["request"]["AlgorithmSpecification"]["TrainingImage"] == PUSHED["training"]["uri"]
    assert cli.main(["build", "--remote", "--no-wait", *project]) == 0
    assert cli.main(["build", "--remote", "--dry-run", "--json", *project]) == 0

"""That it is the API and not an imitation of our launcher: the AWS CLI and the SageMaker SDK drive it unchanged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLI = Path(sys.executable).parent / "aws"
SDK_SCRIPT = Path(__file__).parent / "sdk_session.py"


@pytest.fixture
def cli(aws):
    """Runs `aws ARGUMENTS` against the server; its output as JSON."""

    def run(*arguments, check=True):
        answer = subprocess.run(
            [CLI, *arguments, "--output", "json"],
            env={**os.environ, **aws.server.environment()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check:
            assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout) if check and answer.stdout.strip().startswith("{") else answer

    return run


def test_the_aws_cli_trains_waits_and_reads_logs(aws, cli, training_request, tmp_path):
    request = training_request({"lines": '["from the cli"]'})
    body = tmp_path / "request.json"
    body.write_text(json.dumps(request))
    name = request["TrainingJobName"]
    arn = cli("sagemaker", "create-training-job", "--cli-input-json", f"file://{body}")["TrainingJobArn"]
    cli("sagemaker", "wait", "training-job-completed-or-stopped", "--training-job-name", name)
    job = cli("sagemaker", "describe-training-job", "--training-job-name", name)
    assert (job["TrainingJobArn"], job["TrainingJobStatus"]) == (arn, "Completed")
    events = cli(
        "logs", "filter-log-events", "--log-group-name", "/aws/sagemaker/TrainingJobs", "--log-stream-name-prefix", name
    )
    assert "from the cli" in [event["message"] for event in events["events"]]
    listed = cli("sagemaker", "list-training-jobs", "--name-contains", name)
    assert [item["TrainingJobName"] for item in listed["TrainingJobSummaries"]] == [name]


def test_an_empty_object_is_stored_like_any_other(aws):
    """Boto3 asks with `Expect: 100-continue` before it sends nothing, too: an `__init__.py`, say."""
    uri = aws.put("package/__init__.py", b"")
    assert aws.get(uri) == b""
    assert aws.keys("package/") == ["__init__.py"]


def test_the_aws_cli_copies_removes_and_syncs_objects(aws, cli, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a b+c.txt").write_text("one")
    (tmp_path / "large.bin").write_bytes(bytes(20 * 2**20))  # in several parts
    cli("s3", "sync", str(tmp_path), "s3://test-bucket/synced")
    mirror = aws.server.home / "s3/test-bucket/synced"
    assert (mirror / "folder/a b+c.txt").read_text() == "one"
    assert (mirror / "large.bin").stat().st_size == 20 * 2**20
    cli("s3", "rm", "--recursive", "s3://test-bucket/synced")
    assert not mirror.exists()


def test_the_aws_cli_invokes_an_endpoint_and_shows_errors(aws, cli, model, endpoint, tmp_path):
    name = endpoint({"A": model()})
    (tmp_path / "body").write_text("hello")
    output = tmp_path / "output"
    answer = cli(
        "sagemaker-runtime",
        "invoke-endpoint",
        "--endpoint-name",
        name,
        "--body",
        f"fileb://{tmp_path}/body",
        str(output),
    )
    assert answer["InvokedProductionVariant"] == "A"
    assert output.read_text() == "HELLO"
    refused = cli("sagemaker", "describe-endpoint", "--endpoint-name", "none", check=False)
    assert (
        "(ValidationException) when calling the DescribeEndpoint operation: Could not find endpoint" in refused.stderr
    )


def test_the_sagemaker_sdk_trains_transforms_and_serves(aws):
    """In a process of its own: the SDK takes its region and its default client from the environment of its import."""
    answer = subprocess.run(
        [sys.executable, SDK_SCRIPT],
        env={**os.environ, **aws.server.environment()},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-3000:]
    assert json.loads(answer.stdout.splitlines()[-1]) == {
        "training": "Completed",
        "metrics": {"loss": 0.25},
        "transform": "Completed",
        "endpoint": "InService",
        "invoked": "HELLO",
        "failed": "AlgorithmError: ValueError: as asked, exit code: 3",
        "model_trainer": "Completed",
        "hyperparameters": {"epochs": "3", "lr": "0.1", "name": "abc"},
    }

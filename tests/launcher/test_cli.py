"""The command line: fast to start, the same options everywhere, one line and an exit status when something is wrong."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from container.contract import BUILTIN_METRICS
from launcher import cli
from launcher.commands.jobs import missing_metrics
from launcher.errors import JobFailed
from launcher.settings import load

ROOT = Path(__file__).parents[2]
YAML = """
name: digits
role: arn:aws:iam::123456789012:role/jobs
training: {instance_type: ml.m5.large, channels: {train: images}}
transform: {instance_type: ml.m5.large, input: images}
endpoint: {instance_type: ml.m5.large}
"""
LOCAL_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
    "AWS_EC2_METADATA_DISABLED",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A project directory, entered."""
    (tmp_path / "launcher.yaml").write_text(YAML)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.txt").write_text("1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cpu_seconds_of(*arguments, cwd):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "launcher", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout.decode(), after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def imported_by(*arguments, cwd):
    program = (
        f"import sys; from launcher.cli import main; assert main({list(arguments)!r}) == 0; "
        "print('\\n' + ' '.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_needs_click_alone(here):
    assert not {"pydantic", "yaml", "boto3", "botocore", "sagemaker", "rich"} & imported_by("--help", cwd=here)


@pytest.mark.parametrize("verb", ["train", "transform", "deploy"])
def test_a_dry_run_needs_neither_sdk_nor_boto3(verb, here):
    assert not {"boto3", "botocore", "sagemaker", "rich"} & imported_by(verb, "--dry-run", cwd=here)


@pytest.mark.parametrize("verb", ["train", "transform", "deploy"])
def test_a_dry_run_prints_the_requests_without_credentials(verb, here, no_credentials, capsys):
    assert cli.main([verb, "--dry-run", "--json"]) == 0
    calls = json.loads(capsys.readouterr().out)
    assert {"service", "operation", "request"} == calls[-1].keys()
    expected = {"train": "CreateTrainingJob", "transform": "CreateTransformJob", "deploy": "CreateEndpoint"}
    assert calls[-1]["operation"] == expected[verb]


@pytest.mark.parametrize("verb", ["train", "transform", "deploy"])
def test_nothing_is_started_from_a_directory_that_is_no_project(verb, tmp_path, monkeypatch, no_credentials, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([verb, "--local"]) == 2
    told = capsys.readouterr().err
    assert f"there is no launcher.yaml in {tmp_path}: go to your project" in told
    assert "`python -m launcher init NAME`" in told
    assert list(tmp_path.iterdir()) == []


def test_a_job_may_be_described_on_the_command_line_alone(tmp_path, monkeypatch, no_credentials, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--dry-run", "--json", "--set", "name=digits"]) == 0
    (call,) = json.loads(capsys.readouterr().out)
    assert call["request"]["TrainingJobName"].startswith("digits-")


def test_a_dry_run_prints_the_same_requests_for_a_person(here, no_credentials, capsys):
    assert cli.main(["train", "--dry-run"]) == 0
    assert '"TrainingInputMode": "File"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "image"),
    [
        ("name=digits", "slipway-train:local"),
        ("images.training.cuda=null", "slipway-train:local"),
        ("images.training.repository=mine", "mine:latest"),
        ("images.training.dockerfile=Dockerfile", "slipway-train:latest"),
        ("images.training.uri=theirs:2", "theirs:2"),
    ],
)
def test_local_jobs_run_the_images_that_make_images_builds(override, image, here, capsys):
    assert cli.main(["train", "--local", "--dry-run", "--json", "--set", override]) == 0
    (call,) = json.loads(capsys.readouterr().out)
    assert call["request"]["AlgorithmSpecification"]["TrainingImage"] == image


def test_local_jobs_run_what_was_built_here_whichever_registry_it_goes_to(here, capsys):
    chosen = ["--set", "images.registry=127.0.0.1:5000", "--set", "images.training.repository=mine"]
    assert cli.main(["train", "--local", "--dry-run", "--json", *chosen]) == 0
    (call,) = json.loads(capsys.readouterr().out)
    assert call["request"]["AlgorithmSpecification"]["TrainingImage"] == "mine:latest"


@pytest.mark.parametrize(
    "arguments",
    [
        ["endpoints"],
        ["jobs"],
        ["delete", "x"],
        ["stop", "x"],
        ["logs", "x"],
        ["download", "s3://a/b"],
        ["build"],
        ["invoke", "images/1.txt"],
    ],
)
def test_every_verb_has_a_dry_run(arguments, here, no_credentials, capsys):
    assert cli.main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_a_training_job_runs_to_its_model(here, aws, capsys):
    assert cli.main(["train"]) == 0
    output = capsys.readouterr().out
    assert ": 1 file (" in output
    assert "-> CreateTrainingJob digits-" in output
    assert "-> trained digits-" in output
    assert "next: python -m launcher deploy digits-" in output


@pytest.fixture
def one_session(aws, monkeypatch):
    """The verb talks through the session whose replies are canned."""
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)


@pytest.mark.usefixtures("one_session")
@pytest.mark.parametrize(
    ("verb", "quota"),
    [("train", "training job usage"), ("transform", "transform job usage"), ("deploy", "endpoint usage")],
)
def test_what_the_quota_does_not_allow_is_refused_before_anything_is_sent(verb, quota, here, canned, sent, capsys):
    none = {"QuotaName": f"ml.m5.large for {quota}", "QuotaCode": "L-1234", "Value": 0.0}
    canned("ListServiceQuotas", {"Quotas": [none]}, service="service-quotas")
    assert cli.main([verb]) == 3
    told = capsys.readouterr().err
    assert f"ml.m5.large for {quota}: the limit is 0 and 1 are needed; ask for more: https://" in told
    assert {operation for operation, _ in sent} == {"ListServiceQuotas"}


def test_the_price_is_told_before_and_a_cap_refuses(here, aws, capsys):
    assert cli.main(["train", "--no-wait", "--set", "training.max_runtime=1h"]) == 0
    output = capsys.readouterr().out
    assert output.index("-> train: $0.1") < output.index("-> CreateTrainingJob")
    assert cli.main(["train", "--set", "limits.max_job_cost=0.01"]) == 7
    assert "limits.max_job_cost" in capsys.readouterr().err


def test_with_json_standard_output_holds_the_result_alone(here, aws, capsys):
    assert cli.main(["train", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["status"] == "Completed"
    assert result["model"].endswith("/output/model.tar.gz")
    assert "-> CreateTrainingJob" in captured.err


def test_no_wait_returns_with_a_command_to_come_back(here, aws, capsys):
    assert cli.main(["train", "--no-wait", "--set", "training.hyperparameters.epochs=2"]) == 0
    assert "next: python -m launcher attach digits-" in capsys.readouterr().out


def trained(capsys):
    assert cli.main(["train", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def put_model(aws, uri):
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    aws.call("s3", "PutObject", Bucket=bucket, Key=key, Body=b"x")


def test_a_model_is_deployed_once_and_then_kept(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    assert cli.main(["deploy", job["name"]]) == 0
    first = capsys.readouterr().out
    assert "create Model" in first
    assert "create Endpoint" in first
    assert "-> endpoint digits is in service" in first
    assert cli.main(["deploy"]) == 0  # without a name: the newest job
    second = capsys.readouterr().out
    assert second.count("keep ") == 3
    assert "create " not in second


def test_a_deployment_that_is_not_waited_for_says_that_scaling_follows(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    assert cli.main(["deploy", job["name"], "--no-wait", "--set", "endpoint.scaling={max: 2, target: 9}"]) == 0
    assert "next: python -m launcher deploy   # again: scaling and components follow" in capsys.readouterr().out


def test_a_deployment_names_a_request_to_try(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    assert cli.main(["deploy", job["name"], "--no-wait"]) == 0
    assert "next: python -m launcher invoke images/1.txt\n" in capsys.readouterr().out  # of the transform section
    (here / "sample.json").write_text("[1]")
    assert cli.main(["deploy", job["name"], "--no-wait", "--set", "endpoint.name=other", "-c", "launcher.yaml"]) == 0
    named = "next: python -m launcher invoke sample.json --endpoint other -c launcher.yaml\n"
    assert named in capsys.readouterr().out


def test_without_any_request_the_deployment_says_file(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    (here / "images" / "1.txt").rename(here / "images" / "1.bin")
    assert cli.main(["deploy", job["name"], "--no-wait"]) == 0
    assert "next: python -m launcher invoke FILE\n" in capsys.readouterr().out


def test_endpoints_are_listed_and_deleted(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    cli.main(["deploy", "--no-wait", job["name"]])
    capsys.readouterr()
    assert cli.main(["endpoints", "--json"]) == 0
    assert [item["name"] for item in json.loads(capsys.readouterr().out)] == ["digits"]
    assert cli.main(["delete", "digits"]) == 0
    assert cli.main(["endpoints"]) == 0
    assert "none" in capsys.readouterr().out
    assert aws.call("sagemaker", "ListEndpointConfigs")["EndpointConfigs"] == []


def test_a_transform_job_says_where_its_answers_lie(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    assert cli.main(["transform", job["name"]]) == 0
    assert "next: python -m launcher download s3://" in capsys.readouterr().out


def test_jobs_are_listed(here, aws, capsys):
    job = trained(capsys)
    assert cli.main(["jobs", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["name"], listed["kind"], listed["status"]) == (job["name"], "TrainingJob", "Completed")


def test_the_log_of_a_job_is_printed(here, aws, capsys):
    job = trained(capsys)
    group, stream = "/aws/sagemaker/TrainingJobs", f"{job['name']}/algo-1-1"
    aws.call("logs", "CreateLogGroup", logGroupName=group)
    aws.call("logs", "CreateLogStream", logGroupName=group, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000), "message": "hello"}]
    aws.call("logs", "PutLogEvents", logGroupName=group, logStreamName=stream, logEvents=events)
    assert cli.main(["logs", job["name"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["message"] == "hello"
    assert cli.main(["logs", "-f", job["name"]]) == 0


def test_artifacts_are_downloaded(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    assert cli.main(["download", job["name"], "out"]) == 0
    assert (here / "out" / "model.tar.gz").read_bytes() == b"x"


@pytest.mark.usefixtures("one_session")
def test_the_answers_of_a_transform_job_are_downloaded_by_its_name(here, aws, canned, capsys):
    aws.call("s3", "CreateBucket", Bucket="answers")
    aws.call("s3", "PutObject", Bucket="answers", Key="digits/t-1/in.csv.out", Body=b"7")
    not_found = {"Error": {"Code": "ValidationException", "Message": "Requested resource not found."}}
    canned("DescribeTrainingJob", not_found)
    canned("DescribeTransformJob", {"TransformOutput": {"S3OutputPath": "s3://answers/digits/t-1"}}, not_found)
    assert cli.main(["download", "t-1", "out"]) == 0
    assert (here / "out" / "in.csv.out").read_bytes() == b"7"
    assert cli.main(["download", "t-2", "out"]) == 2
    assert "no training or transform job is named 't-2'" in capsys.readouterr().err


def test_a_metric_that_no_line_had_is_named():
    asked = [{"Name": name, "Regex": "x"} for name in ("loss", "accuracy")]
    job = {"AlgorithmSpecification": {"MetricDefinitions": asked}, "FinalMetricDataList": [{"MetricName": "loss"}]}
    assert missing_metrics(job) == ["accuracy"]
    ours = [{"Name": name, "Regex": "x"} for name in BUILTIN_METRICS]  # not all: `test:loss` needs a channel
    assert missing_metrics({"AlgorithmSpecification": {"MetricDefinitions": ours}}) == []


def test_a_failed_job_has_its_traces_to_download(here, aws, canned, capsys, monkeypatch):
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    bucket = "artifacts"
    aws.call("s3", "CreateBucket", Bucket=bucket)
    aws.call("s3", "PutObject", Bucket=bucket, Key="digits/output/failed/output/output.tar.gz", Body=b"traces")
    job = {"TrainingJobStatus": "Failed", "OutputDataConfig": {"S3OutputPath": f"s3://{bucket}/digits/output/"}}
    canned("DescribeTrainingJob", job, job, job | {"TrainingJobStatus": "InProgress"})
    assert cli.main(["download", "failed", "out"]) == 0
    assert (here / "out" / "output.tar.gz").read_bytes() == b"traces"
    assert cli.main(["download", "empty", "out"]) == 2
    assert f"there is nothing under s3://{bucket}/digits/output/empty/output/" in capsys.readouterr().err
    assert cli.main(["download", "failed", "out"]) == 2
    assert "training job failed is InProgress; wait for it with `logs -f`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "--set", "trainig.x=1"], 2, "unknown setting 'trainig'; did you mean 'training'?"),
        (["train", "-c", "nowhere.yaml"], 2, "error: nowhere.yaml does not exist"),
        (["fly"], 2, "No such command 'fly'"),
        (["train", "--fly"], 2, "No such option"),
        (["deploy", "digits-none"], 4, "error: DescribeTrainingJob was refused"),
        (["logs", "nobody"], 4, "error: no training job, transform job or endpoint is named 'nobody'"),
        (["deploy"], 2, "error: no training job of the project 'digits' has completed"),
        (["deploy", "s3://bucket/none.tar.gz"], 2, "error: there is no model archive at s3://bucket/none.tar.gz"),
        (["invoke", "images/2.txt"], 2, "error: images/2.txt cannot be read: No such file"),
        (["invoke", "images/x.strange"], 2, "the ending tells no content type"),
        (["train", "--set", "role="], 2, "error: role is not set"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_status(arguments, status, message, here, aws, capsys):
    (here / "images" / "x.strange").write_text("")
    assert cli.main(arguments) == status
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_stopping_an_endpoint_is_refused_with_the_right_verb(here, aws, capsys):
    job = trained(capsys)
    put_model(aws, job["model"])
    cli.main(["deploy", "--no-wait", job["name"]])
    assert cli.main(["stop", "digits"]) == 2
    assert "end it with `python -m launcher delete digits`" in capsys.readouterr().err


def test_a_job_that_fails_is_exit_status_5(here, aws, capsys, monkeypatch):
    def fail(*_, **__):
        raise JobFailed("training job x Failed: no labels")

    monkeypatch.setattr("launcher.run.follow", fail)
    assert cli.main(["train"]) == 5
    assert "error: training job x Failed: no labels" in capsys.readouterr().err


def test_what_nobody_foresaw_leaves_its_trace_in_a_file(here, aws, capsys, monkeypatch):
    def explode(*_, **__):
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("launcher.run.follow", explode)
    assert cli.main(["train"]) == 1
    assert (
        "error: ZeroDivisionError: deep inside (unexpected; the trace is in .launcher/error.log)"
        in capsys.readouterr().err
    )
    assert "Traceback" in (here / ".launcher" / "error.log").read_text()


def test_ctrl_c_is_exit_status_130(here, aws, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.project.Project.start_training", interrupt)
    assert cli.main(["train"]) == 130


def test_the_program_runs_as_a_module(here):
    output, _ = cpu_seconds_of("--help", cwd=here)
    places = [output.index(text) for text in ("\nJobs:\n", "\n  train ", "\nEndpoints:\n", "\n  deploy ")]
    assert places == sorted(places)
    assert "..." not in output.partition("Jobs:")[2]  # every verb has its whole sentence


def test_the_local_sagemaker_starts_answers_and_stops(here, monkeypatch, capsys):
    monkeypatch.setenv("SLIPWAY_LOCAL_RUNTIME", "process")
    for name in LOCAL_VARIABLES:
        monkeypatch.setenv(name, "x")  # so that what --local sets is taken back after the test
        monkeypatch.delenv(name)
    assert cli.main(["local", "status"]) == 0
    assert "it is not running" in capsys.readouterr().out
    try:
        assert cli.main(["local", "env"]) == 0
        assert "export AWS_ENDPOINT_URL=http://127.0.0.1:" in capsys.readouterr().out
        assert cli.main(["jobs", "--local"]) == 0
        assert capsys.readouterr().out == "none\n"
        assert cli.main(["local", "up"]) == 0
        assert "next: eval" in capsys.readouterr().out
        assert cli.main(["local", "interrupt", "no-such-job"]) == 1
    finally:
        assert cli.main(["local", "down"]) == 0
    assert "-> stopped" in capsys.readouterr().out


def test_a_local_sagemaker_that_cannot_start_is_one_line(here, monkeypatch, capsys):
    (here / ".launcher").mkdir()
    monkeypatch.setenv("SLIPWAY_LOCAL_RUNTIME", "nonsense")
    assert cli.main(["local", "up"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_every_verb_of_the_documentation_exists():
    text = (ROOT / "docs" / "launcher.md").read_text()
    mentioned = set(re.findall(r"python -m launcher ([a-z]+)", text))
    for row in re.findall(
        r"^\| (`[a-z].*?) \|", text.partition("## Verbs")[2].partition("## launcher.yaml")[0], re.MULTILINE
    ):
        mentioned |= {name.split()[0] for name in re.findall(r"`([a-z]+[a-z -]*)", row)}
    assert mentioned - {"init"} <= set(cli.cli.commands)
    assert set(cli.cli.commands) <= mentioned


def test_the_configuration_of_the_documentation_is_valid(tmp_path):
    text = (ROOT / "docs" / "launcher.md").read_text()
    (tmp_path / "launcher.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    assert load(tmp_path / "launcher.yaml").config.training.max_runtime == 8 * 3600

"""What leaves the process is exactly the body we built, through the SageMaker SDK, and nothing else leaves."""

import logging
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from launcher.aws import Aws, refusals, sdk_resources, sdk_spells, use_environment
from launcher.errors import AwsRefused, ConfigError
from launcher.jobs import endpoint, training, transform
from launcher.jobs.api import ApiCall
from launcher.jobs.model import ServedModel, model_call
from launcher.validate import refuse_malformed

MODEL = ServedModel("s3://bucket/model.tar.gz")
NOTHING = {"Error": {"Code": "ValidationException", "Message": "nothing of that name"}}
FULL = """
name: digits
tags: {owner: team}
training:
  instance_type: ml.m5.large
  volume_size_gb: 20
  channels:
    train: {source: "s3://data/train/", mode: FastFile, distribution: ShardedByS3Key, shuffle_seed: 3}
    shared: {source: "fs-0123456789abcdef0:/data", file_system: FSxLustre}
  hyperparameters: {Epochs: 3, optimizer: {betas: [0.9, 0.99]}}
  environment: {SOME_Name: x}
  spot: true
  retry_attempts: 2
  keep_alive: null
network: {subnets: [subnet-1], security_groups: [sg-1], isolation: true, encrypt_traffic: true}
transform: {input: s3://a/b, max_payload_mb: 6, timeout: 5m, input_filter: "$[1:]", join: Input}
endpoint:
  environment: {A: 1}
  capture: true
  asynchronous: {max_concurrent: 2}
  shadow: {name: next, model: s3://b/3}
  volume_size_gb: 10
"""


@pytest.fixture
def created(canned):
    """Creations are answered; descriptions are not, as after the request nothing more is asked."""
    for noun in ("TrainingJob", "TransformJob", "Model", "EndpointConfig", "Endpoint"):
        canned(f"Create{noun}", {f"{noun}Arn": "arn"})
        canned(f"Describe{noun}", {f"{noun}Name": "x"})


@pytest.mark.parametrize("kind", ["train", "transform", "deploy"])
def test_the_sdk_sends_the_body_we_built(kind, aws, sent, created, config, context):
    made = config(yaml=FULL)
    calls = {
        "train": training.calls(made, context),
        "transform": transform.calls(made, context, MODEL),
        "deploy": endpoint.calls(made, context, {"main": MODEL, "next": MODEL}),
    }[kind]
    for call in calls:
        aws.send(call)
    creations = [(operation, body) for operation, body in sent if operation.startswith("Create")]
    assert creations == [(call.operation, call.request) for call in calls]


def test_a_name_the_sdk_spells_wrongly_goes_through_its_sessions_client(aws, sent, created, config, context):
    call = endpoint.calls(config("endpoint.serverless=true"), context, {"main": MODEL})[1]
    assert not sdk_spells(call)
    aws.send(call)
    assert sent[-1] == ("CreateEndpointConfig", call.request)


def test_a_member_the_sdk_does_not_have_goes_through_its_sessions_client(
    aws, sent, created, config, context, monkeypatch
):
    class Old:
        @staticmethod
        def create(**arguments):
            raise ValidationError.from_exception_data("no such argument", [])

    monkeypatch.setattr(sdk_resources(), "Model", Old)
    call = model_call(config(), context, MODEL)
    aws.send(call)
    assert sent[-1] == ("CreateModel", call.request)


@pytest.mark.usefixtures("created")
def test_no_file_of_the_sdks_own_adds_anything_to_a_request(aws, sent, config, context, monkeypatch, tmp_path):
    defaults = {
        "SchemaVersion": "1.0",
        "SageMaker": {"PythonSDK": {"Resources": {"TrainingJob": {"VpcConfig": {"Subnets": ["subnet-x"]}}}}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(defaults))
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(tmp_path / "config.yaml"))
    sdk_resources.cache_clear()
    (call,) = training.calls(config(), context)
    aws.send(call)
    assert ("CreateTrainingJob", call.request) in sent


def test_the_sdk_is_told_to_send_no_telemetry_and_sends_none(aws, created, config, context, monkeypatch):
    import requests

    fetched = []
    monkeypatch.setattr(requests, "get", lambda url, **_: fetched.append(url))
    for call in endpoint.calls(config("endpoint.serverless=true"), context, {"main": MODEL}):
        aws.send(call)
    python_sdk = aws.sdk_session.sagemaker_config["SageMaker"]["PythonSDK"]
    assert python_sdk["Modules"]["TelemetryOptOut"] is True
    assert fetched == []


def test_importing_the_sdk_leaves_the_root_logger_alone():
    program = (
        "import logging; before = (list(logging.getLogger().handlers), logging.getLogger().level)\n"
        "from launcher.aws import sdk_resources; sdk_resources()\n"
        "assert before == (logging.getLogger().handlers, logging.getLogger().level)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_the_sdk_is_imported_only_when_a_request_is_sent():
    program = (
        "import sys, launcher.cli, launcher.aws, launcher.run, launcher.project, launcher.data, launcher.invoke\n"
        "assert not [name for name in sys.modules if name.startswith('sagemaker')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_a_request_with_a_mistake_is_refused_before_it_is_sent(aws, sent):
    with pytest.raises(ConfigError, match="CreateModel: ModelName is missing"):
        aws.send(ApiCall("sagemaker", "CreateModel", {}))
    assert sent == []


def test_c72_a_request_that_would_break_the_sdks_driver_script_is_refused(aws, sent, config, context):
    (call,) = training.calls(config("training.channels={sm_drivers: s3://b/x}"), context)
    call.request["HyperParameters"] = {"optimizer.lr": "1"}
    with pytest.raises(ConfigError, match=r"hyperparameter 'optimizer\.lr': its name must be letters"):
        aws.send(call)
    assert sent == []


def test_an_unknown_instance_type_is_a_warning_as_lists_age(aws, created, config, context, caplog):
    (call,) = training.calls(config("training.instance_type=ml.zz9.large"), context)
    with caplog.at_level(logging.WARNING, "launcher"):
        refuse_malformed(call)
    assert "'ml.zz9.large' is none of the" in caplog.text


def test_a_refusal_names_code_words_and_remedy(aws, canned, config, context):
    canned("CreateTrainingJob", {"Error": {"Code": "ResourceLimitExceeded", "Message": "limit is 0 Instances"}})
    (call,) = training.calls(config(), context)
    with pytest.raises(AwsRefused, match="ResourceLimitExceeded: limit is 0 Instances; ask for a higher quota"):
        aws.send(call)


def test_without_credentials_the_error_says_what_to_do(no_credentials):
    with pytest.raises(AwsRefused, match="there are no AWS credentials; run `aws sso login`"):
        Aws("us-east-1").call("sts", "GetCallerIdentity")


def test_an_endpoint_that_is_not_there_is_named(no_credentials, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(AwsRefused, match="is the network there, or the local SageMaker up"):
        Aws("us-east-1").call("sts", "GetCallerIdentity")


def test_a_wrong_argument_of_ours_is_told_in_one_line(aws):
    with pytest.raises(AwsRefused, match="Unknown parameter"):
        aws.call("sagemaker", "DescribeModel", Nonsense="x")


def test_without_a_region_the_error_says_where_to_set_it(no_credentials, monkeypatch):
    from botocore.exceptions import NoRegionError

    with pytest.raises(AwsRefused, match="set `region` in launcher.yaml"), refusals("DescribeModel"):
        raise NoRegionError


def test_an_answer_that_is_not_awss_is_a_refusal(no_credentials, monkeypatch):
    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>sign in first")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        with pytest.raises(AwsRefused, match="GetCallerIdentity: the answer is not one of AWS's"):
            Aws("us-east-1").call("sts", "GetCallerIdentity")
        server.shutdown()


def test_a_bucket_is_created_once(aws):
    aws.ensure_bucket("made-here")
    aws.ensure_bucket("made-here")
    assert aws.call("s3", "ListBuckets")["Buckets"][0]["Name"] == "made-here"


def test_a_bucket_of_somebody_else_is_refused(aws, canned):
    canned("HeadBucket", {"Error": {"Code": "403", "Message": "Forbidden"}}, service="s3")
    with pytest.raises(AwsRefused, match="the bucket theirs cannot be used"):
        aws.ensure_bucket("theirs")


def test_a_bucket_in_another_region_is_created_there(aws):
    elsewhere = Aws("eu-west-1")
    elsewhere.ensure_bucket("made-there")
    assert elsewhere.call("s3", "GetBucketLocation", Bucket="made-there")["LocationConstraint"] == "eu-west-1"


def test_a_role_is_an_arn_or_is_looked_up(aws):
    arn = aws.call("iam", "CreateRole", RoleName="jobs", Path="/ml/", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    assert aws.role_arn("jobs") == arn
    assert aws.role_arn(arn) == arn
    with pytest.raises(ConfigError, match="role is not set"):
        aws.role_arn(None)


def test_the_local_sagemaker_takes_the_place_of_a_profile(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    use_environment({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
    import os

    assert "AWS_PROFILE" not in os.environ
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"


def test_a_command_to_copy_reaches_the_same_sagemaker(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert Aws("us-east-1").flags == " --local"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Aws("us-east-1").flags == ""

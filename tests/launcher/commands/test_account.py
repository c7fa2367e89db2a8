"""The verbs about account and machine, as a person or a script meets them."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from launcher.account.cost import OverBudget
from launcher.account.preflight import PreflightRefused
from launcher.commands.account import cost, doctor, iam, preflight
from launcher.errors import ConfigError, JobFailed

ROOT = Path(__file__).parents[3]
YAML = """\
name: digits
role: arn:aws:iam::123456789012:role/jobs
training: {instance_type: ml.m5.xlarge, max_runtime: 4h}
transform: {input: ./rows, instance_type: ml.m5.xlarge}
endpoint: {instance_type: ml.m5.xlarge}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command line in a project and returns (result, standard output)."""
    (tmp_path / "launcher.yaml").write_text(YAML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLIPWAY_PRICES", raising=False)
    group = click.Group()
    for command in (iam, preflight, cost, doctor):
        group.add_command(command)

    def invoke(*arguments: str):
        result = CliRunner().invoke(group, arguments)
        return result, result.stdout

    return invoke


def test_iam_policy_prints_every_document_for_a_person(run):
    result, text = run("iam", "policy")
    assert result.exit_code == 0
    for name in ("execution_role", "caller", "preflight", "trust"):
        assert f"# {name}\n{{" in text
    assert "# note: resource" in text
    assert "111122223333" not in text


def test_iam_policy_prints_one_document_that_a_policy_can_be_made_of(run):
    _, text = run("iam", "policy", "--part", "caller", "--for", "train")
    document = json.loads(text)
    assert document["Version"] == "2012-10-17"
    assert "sagemaker:CreateEndpoint" not in text


def test_iam_policy_without_an_account_says_that_it_assumed_one(run):
    _, text = run("iam", "policy", "--json", "--set", "role=jobs")
    found = json.loads(text)
    assert "account 111122223333 is AWS's example: pass --account, or set role to an ARN" in found["notes"]
    passed = next(item for item in found["caller"]["Statement"] if item["Sid"] == "PassRole")
    assert passed["Resource"] == "arn:aws:iam::111122223333:role/jobs"
    _, text = run("iam", "policy", "--json", "--set", "role=jobs", "--account", "999999999999")
    assert "111122223333" not in text


def test_iam_policy_without_a_role_says_which_name_stands_for_it(run):
    _, text = run("iam", "policy", "--json", "--set", "role=null", "--set", "region=cn-north-1")
    assert "no role is configured; slipway-execution-role stands for it" in json.loads(text)["notes"]
    assert "arn:aws-cn:iam::111122223333:role/slipway-execution-role" in text


def test_a_broken_configuration_is_refused_before_anything_else(run):
    result, _ = run("iam", "policy", "--set", "nam=x")
    assert isinstance(result.exception, ConfigError)


def test_cost_estimate_tells_price_and_maximum_and_where_the_prices_come_from(run):
    result, text = run("cost", "estimate")
    assert result.exit_code == 0
    assert "-> train: $0.23 per hour, at most $0.92" in text
    assert "-> transform: $0.23 per hour" in text
    assert "-> deploy: $0.23 per hour, $167.90 per month" in text
    assert "check https://aws.amazon.com/sagemaker/ai/pricing/ before you rely on it" in text


def test_cost_estimate_over_a_limit_tells_the_figures_and_then_refuses(run):
    result, text = run("cost", "estimate", "--json", "--for", "train", "--set", "limits.max_job_cost=0.5")
    assert isinstance(result.exception, OverBudget)
    (found,) = json.loads(text)
    assert found["usd_maximum"] == pytest.approx(0.92)


def test_a_batch_job_without_an_input_is_not_estimated(run):
    _, text = run("cost", "estimate", "--json", "--set", "transform.input=null")
    assert [item["kind"] for item in json.loads(text)] == ["train", "deploy"]


def test_cost_report_adds_up_by_tag(run, aws, canned, monkeypatch):
    monkeypatch.setattr("launcher.aws.boto3.Session", lambda **_: aws.session)
    job = {"TrainingJobName": "digits-1", "TrainingJobArn": "arn:aws:sagemaker:us-east-1:123456789012:training-job/d"}
    canned("ListTrainingJobs", {"TrainingJobSummaries": [job]})
    resources = {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 1}
    seconds = {"TrainingTimeInSeconds": 7200, "BillableTimeInSeconds": 3600, "EnableManagedSpotTraining": True}
    canned("DescribeTrainingJob", {**job, **seconds, "ResourceConfig": resources})
    canned("ListTransformJobs", {"TransformJobSummaries": []})
    canned("ListEndpoints", {"Endpoints": []})
    canned("ListTags", {"Tags": [{"Key": "owner", "Value": "ada"}]})
    result, text = run("cost", "report", "--tag", "owner", "--since", "7d")
    assert result.exit_code == 0
    assert text.splitlines()[0].split() == ["OWNER", "COUNT", "INSTANCE", "HOURS", "USD", "SPOT", "SAVED"]
    assert text.splitlines()[1].split() == ["ada", "1", "2.00", "0.46", "0.46"]
    _, text = run("cost", "report", "--json")
    assert json.loads(text)["items"][0]["name"] == "digits-1"


def test_a_report_of_nothing_says_none(run, aws, canned, monkeypatch):
    monkeypatch.setattr("launcher.aws.boto3.Session", lambda **_: aws.session)
    canned("ListTrainingJobs", {"TrainingJobSummaries": []})
    canned("ListTransformJobs", {"TransformJobSummaries": []})
    canned("ListEndpoints", {"Endpoints": []})
    _, text = run("cost", "report")
    assert text.splitlines()[0] == "none"


def test_a_since_that_is_no_duration_is_refused(run):
    result, _ = run("cost", "report", "--since", "yesterday")
    assert result.exit_code == 2
    assert "'yesterday' is no duration" in result.output


def test_preflight_prints_its_findings_and_ends_with_status_3(run, aws, monkeypatch):
    monkeypatch.setattr("launcher.aws.boto3.Session", lambda **_: aws.session)
    result, text = run("preflight", "--for", "train", "--set", "role=nobody")
    assert isinstance(result.exception, PreflightRefused)
    assert result.exception.exit_code == 3
    assert "execution role nobody: does not exist" in text
    result, text = run("preflight", "--json", "--for", "train", "--set", "role=nobody")
    assert {"check", "status", "detail", "fix", "identity"} == set(json.loads(text)[0])


def test_doctor_prints_its_findings(run, monkeypatch):
    result, text = run("doctor", "--json")
    found = {item["check"]: item for item in json.loads(text)}
    assert found["config"]["detail"].startswith("launcher.yaml is valid: project digits")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    result, text = run("doctor")
    assert "FAIL  credentials" in text
    assert isinstance(result.exception, JobFailed)
    assert "checks failed: credentials" in str(result.exception)


def test_the_verbs_are_listed_without_loading_what_they_need():
    code = (
        "import sys; from launcher.commands import account;"
        "print(sorted({'boto3', 'botocore', 'pydantic', 'yaml', 'sagemaker'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"

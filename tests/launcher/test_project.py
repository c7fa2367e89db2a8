"""Names, places and uploads of a project in an account; its settings and where they come from."""

import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml

from launcher import cli, data
from launcher.config import Config
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.jobs.model import model_call
from launcher.provenance import provenance

ROOT = Path(__file__).parents[2]
YAML_FILES = sorted([*ROOT.glob("examples/**/launcher.yaml"), *ROOT.glob("launcher/templates/*/launcher.yaml")])
CAPACITY = {"Error": {"Code": "CapacityError", "Message": "no machines"}}


def model_archive(path, weights="w"):
    (path.parent / "weights").write_text(weights)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(path.parent / "weights", "weights")
    return path


def types_asked_for(sent):
    return [body["ResourceConfig"]["InstanceType"] for name, body in sent if name == "CreateTrainingJob"]


SPOT = "training.spot=true"


def test_on_demand_sagemaker_is_given_all_types_at_once(project, canned, sent):
    canned("CreateTrainingJob", {"TrainingJobArn": "arn"})
    canned("DescribeTrainingJob", {"TrainingJobName": "x"})
    made = project("training.instance_type=[ml.g5.xlarge, ml.g6.xlarge, ml.g5.xlarge]")
    made.train(lambda name: {"TrainingJobName": name})
    (resources,) = [body["ResourceConfig"] for name, body in sent if name == "CreateTrainingJob"]
    assert resources["InstancePreferences"] == [{"InstanceType": "ml.g5.xlarge"}, {"InstanceType": "ml.g6.xlarge"}]
    assert resources["InstanceCount"] == 1
    assert "InstanceType" not in resources


def test_the_next_instance_type_is_tried_when_the_request_finds_no_capacity(project, canned, sent):
    canned("CreateTrainingJob", CAPACITY, {"TrainingJobArn": "arn"})
    canned("DescribeTrainingJob", {"TrainingJobName": "x"})
    made = project("training.instance_type=[ml.g5.xlarge, ml.g6.xlarge]", SPOT)
    assert made.train(lambda name: {"TrainingJobName": name})["TrainingJobName"].startswith("digits-")
    assert types_asked_for(sent) == ["ml.g5.xlarge", "ml.g6.xlarge"]


def test_the_next_instance_type_is_tried_when_the_job_finds_no_capacity(project, canned, sent, caplog):
    canned("CreateTrainingJob", {"TrainingJobArn": "arn"})
    canned("DescribeTrainingJob", {"TrainingJobName": "x"})
    outcomes = iter([JobFailed("training job x Failed: CapacityError: no machines"), {"TrainingJobName": "y"}])

    def follow(_):
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    made = project("training.instance_type=[ml.g5.xlarge, ml.g6.xlarge]", SPOT)
    assert made.train(follow) == {"TrainingJobName": "y"}
    assert types_asked_for(sent) == ["ml.g5.xlarge", "ml.g6.xlarge"]
    assert "there is no capacity for ml.g5.xlarge; trying the next type" in caplog.text


@pytest.mark.parametrize("types", ["ml.g5.xlarge", "[ml.g5.xlarge, ml.g6.xlarge]"])
def test_another_failure_or_the_last_type_stands(types, project, canned):
    refusal = CAPACITY if "[" not in types else {"Error": {"Code": "ValidationException", "Message": "no"}}
    canned("CreateTrainingJob", refusal)
    with pytest.raises(AwsRefused, match="no"):
        project(f"training.instance_type={types}", SPOT).train(lambda _: {})


def test_a_local_model_is_uploaded(project, tmp_path, aws):
    (tmp_path / "artifacts").mkdir()
    model_archive(tmp_path / "artifacts" / "model.tar.gz")
    made = project()
    context = made.context()
    served = made.served_model(context, "artifacts/model.tar.gz")
    assert served.size_bytes == (tmp_path / "artifacts" / "model.tar.gz").stat().st_size
    assert re.fullmatch(rf"s3://{context.bucket}/digits/models/artifacts/[0-9a-f]{{12}}/model\.tar\.gz", served.uri)
    assert made.served_model(context, "artifacts/model.tar.gz") == served


def test_a_local_model_that_was_packed_anew_is_another_model_and_the_one_before_is_still_there(project, tmp_path, aws):
    made = project("endpoint.model=./model.tar.gz")
    archive, context = tmp_path / "model.tar.gz", made.context()
    served = []
    for weights in ("one", "two"):
        model_archive(archive, weights)
        served.append(made.served_model(context, "./model.tar.gz"))
    names = [model_call(made.config, context, model).request["ModelName"] for model in served]
    assert names[0] != names[1]
    assert data.stored(aws, served[0].uri).etag == served[0].etag != served[1].etag


def test_serving_code_is_put_into_the_model_once(project, tmp_path, aws, sent):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "inference.py").write_text("x")
    model_archive(tmp_path / "model.tar.gz")
    made = project("endpoint.code=src")
    context = made.context()
    first = made.served_model(context, "./model.tar.gz")
    puts = [body["Key"] for name, body in sent if name == "PutObject"]
    assert made.served_model(context, "./model.tar.gz") == first
    assert [body["Key"] for name, body in sent if name == "PutObject"][len(puts) :] == []
    assert first.uri.startswith(f"s3://{context.bucket}/digits/models/model-")
    (tmp_path / "src" / "inference.py").write_text("y")
    assert made.served_model(context, "./model.tar.gz").uri != first.uri


def test_a_job_that_has_not_finished_has_no_model(project, canned):
    canned("DescribeTrainingJob", {"TrainingJobName": "x", "TrainingJobStatus": "InProgress"})
    with pytest.raises(ConfigError, match="training job x is InProgress and has no model yet"):
        project().artifact_uri("x")


def test_the_newest_job_is_this_projects_own_however_many_others_there_are(project, canned, sent):
    others = [{"TrainingJobName": f"digits-other-20261121-0908{n:02}-22d9"} for n in range(60)]
    ours = [{"TrainingJobName": "digits-20261120-090804-22d9"}, {"TrainingJobName": "digits-20261119-090804-22d9"}]
    canned(
        "ListTrainingJobs",
        {"TrainingJobSummaries": others, "NextToken": "more"},
        {"TrainingJobSummaries": ours},
    )
    assert project().newest_training_job() == "digits-20261120-090804-22d9"
    assert [request.get("NextToken") for _, request in sent] == [None, "more"]


def test_without_a_completed_job_of_this_project_the_error_says_what_to_do(project, canned):
    canned("ListTrainingJobs", {"TrainingJobSummaries": [{"TrainingJobName": "digits-other-20261121-090801-22d9"}]})
    with pytest.raises(ConfigError, match="no training job of the project 'digits' has completed; run"):
        project().newest_training_job()


def test_a_refused_description_is_not_taken_for_a_missing_one(project, canned):
    canned("DescribeEndpoint", {"Error": {"Code": "AccessDeniedException", "Message": "no"}})
    with pytest.raises(AwsRefused, match="AccessDeniedException"):
        project().describe_or_none("Endpoint", "x")


def test_a_secret_is_not_sent(project, sent):
    with pytest.raises(ConfigError, match="TOKEN"):
        project("training.environment.TOKEN=ghp_0123456789abcdefghijABCDEFGHIJ012345").start_training()
    assert "CreateTrainingJob" not in [name for name, _ in sent]


def test_the_configuration_shows_where_each_value_comes_from(tmp_path, monkeypatch, capsys):
    (tmp_path / "launcher.yaml").write_text("name: digits\ntraining:\n  spot: true\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "show", "--origin", "--json", "--set", "region=eu-west-1"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == {"value": "digits", "origin": "launcher.yaml:1"}
    assert shown["region"] == {"value": "eu-west-1", "origin": "--set"}
    assert shown["training.spot.max_wait"]["origin"] == "launcher.yaml:3"
    assert shown["training.max_runtime"] == {"value": 86400, "origin": "default"}
    assert cli.main(["config", "show", "--json"]) == 0
    assert Config.model_validate(json.loads(capsys.readouterr().out)).training.spot is not None
    assert cli.main(["config", "show", "--origin"]) == 0
    assert "# launcher.yaml:3" in capsys.readouterr().out


def test_the_configuration_of_local_jobs_is_shown_without_a_local_sagemaker(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "show", "--origin", "--json", "--local"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["region"]["origin"] == shown["role"]["origin"] == "--local"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", YAML_FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_schema_takes_every_configuration_that_we_ship(file, tmp_path, capsys):
    import jsonschema

    assert cli.main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    text = file.read_text()
    blanks = {"name": "mine", "code": "src", "program": "train.py", "serving": "code: src"}
    content = yaml.safe_load(text.format(**blanks) if "templates" in file.parts else text)
    jsonschema.validate(content, schema)
    section = next(name for name in ("training", "endpoint", "images") if name in content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, section: {**content[section], "misspelt": 1}}, schema)


def test_the_schema_takes_the_pages_example(capsys):
    import jsonschema

    page = (ROOT / "docs" / "launcher.md").read_text()
    example = yaml.safe_load(re.findall(r"```yaml\n(name: .*?)```", page, re.DOTALL)[0])
    assert cli.main(["config", "schema"]) == 0
    jsonschema.validate(example, json.loads(capsys.readouterr().out))


def test_the_schema_takes_what_the_file_may_say(tmp_path, capsys):
    import jsonschema

    assert cli.main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.validate(
        {
            "name": "a",
            "training": {
                "instance_type": "ml.g5.xlarge",
                "max_runtime": "8h",
                "volume_size_gb": "1TB",
                "spot": True,
                "checkpoints": "auto",
                "channels": {"train": "data"},
                "environment": {"A": True},
            },
            "endpoint": {"capture": True},
        },
        schema,
    )
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"nane": "a"}, schema)


def test_a_job_says_what_it_was_made_of(project, sent, canned, tmp_path):
    canned("CreateTrainingJob", {"TrainingJobArn": "arn"})
    canned("DescribeTrainingJob", {"TrainingJobName": "x"})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.txt").write_text("1")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "images"], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(tmp_path), *author, "commit", "-qm", "first"], check=True)

    def tags():
        project("training.channels.train=images").start_training()
        (body,) = [body for name, body in sent[-3:] if name == "CreateTrainingJob"]
        return {tag["Key"]: tag["Value"] for tag in body["Tags"]}

    first = tags()
    assert len(first["slipway:commit"]) == len(first["slipway:data"]) == 12
    assert tags() == first
    (tmp_path / "images" / "1.txt").write_text("2")
    changed = tags()
    assert changed["slipway:commit"] == f"{first['slipway:commit']}-changed"
    assert changed["slipway:data"] != first["slipway:data"]


def test_outside_a_repository_only_the_data_are_named(tmp_path, monkeypatch):
    assert provenance(tmp_path / "nowhere", ["abc"]) == {"slipway:data": "abc"}
    monkeypatch.setenv("PATH", "")
    assert provenance(tmp_path, []) == {}

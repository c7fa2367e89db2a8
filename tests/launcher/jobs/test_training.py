"""A training section becomes the body CreateTrainingJob takes."""

import pytest

from container.contract import BUILTIN_METRICS, metric_regex
from launcher.config import Config
from launcher.errors import ConfigError
from launcher.jobs import training
from launcher.jobs.api import ApiCall, Upload
from launcher.validate import problems

FULL = """
name: digits
tags: {owner: team, cost: 7}
training:
  instance_type: [ml.g5.12xlarge, ml.g6.12xlarge]
  instance_count: 2
  volume_size_gb: 100GB
  volume_kms_key: 1234abcd-12ab-34cd-56ef-1234567890ab
  max_runtime: 8h
  code: src
  channels:
    train: {source: "s3://data/train/", mode: FastFile, distribution: ShardedByS3Key}
    validation: ./validation
    lines: {source: "s3://data/list.jsonl", data_type: AugmentedManifestFile, mode: Pipe,
      attributes: [image-ref, label], record_wrapper: RecordIO, shuffle_seed: 3, content_type: image/png}
    shared: {source: "fs-0123456789abcdef0:/data", file_system: FSxLustre}
  hyperparameters: {epochs: 3, optimizer: {name: adam, betas: [0.9, 0.99], amsgrad: false}, nothing: null}
  environment: {DEBUG: true, LEVEL: 3}
  metrics: {loss: "loss=([0-9.]+)"}
  spot: {max_wait: 12h}
  checkpoints: s3://bucket/ck
  output: {compression: NONE, kms_key: alias/key}
  retry_attempts: 2
  remote_debug: true
network: {subnets: [subnet-1], security_groups: [sg-1], isolation: true, encrypt_traffic: true}
"""


def request(config: Config, context) -> dict:
    (call,) = training.calls(config, context)
    assert call.operation == "CreateTrainingJob"
    return call.request


def test_the_smallest_configuration_makes_a_valid_request(config, context):
    assert problems(ApiCall("sagemaker", "CreateTrainingJob", request(config(), context))) == []


def test_every_option_at_once_makes_a_valid_request(config, context, golden):
    body = request(config(yaml=FULL), context)
    assert problems(ApiCall("sagemaker", "CreateTrainingJob", body)) == []
    golden("training_full", body)


def test_several_types_on_demand_are_one_request(config, context, golden):
    types = "[ml.g5.12xlarge, ml.g6.12xlarge]"
    body = request(config(f"training.instance_type={types}", "training.instance_count=2"), context)
    assert problems(ApiCall("sagemaker", "CreateTrainingJob", body)) == []
    golden("training_preferences", body)


def test_a_file_system_needs_your_network(config, context):
    made = config("training.channels.shared=fs-0123456789abcdef0:/data")
    with pytest.raises(ConfigError, match=r"training\.channels\.shared: a file system is reached from your VPC only"):
        request(made, context)


def test_instance_groups_take_the_place_of_one_type(config, context, golden):
    groups = "[{name: gpu, instance_type: ml.g5.xlarge}, {name: cpu, instance_type: ml.c5.xlarge, instance_count: 2}]"
    body = request(config(f"training.instance_groups={groups}"), context)
    assert problems(ApiCall("sagemaker", "CreateTrainingJob", body)) == []
    assert "InstanceType" not in body["ResourceConfig"]
    golden("training_groups", body)


def test_hyperparameters_are_flattened_to_dotted_names_and_texts():
    nested = {"epochs": 3, "optimizer": {"lr": 0.1, "nesterov": True}, "sizes": [1, 2], "name": "a b", "none": None}
    assert training.hyperparameters(nested) == {
        "epochs": "3",
        "optimizer.lr": "0.1",
        "optimizer.nesterov": "true",
        "sizes": "[1, 2]",
        "name": "a b",
    }


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ({str(n): 1 for n in range(101)}, "has 101 entries and SageMaker takes 100"),
        ({"a" * 257: 1}, "its name has 257 characters and SageMaker takes 256"),
        ({"a": "x" * 2501}, "its value has 2501 characters and SageMaker takes 2500"),
    ],
)
def test_c73_hyperparameters_over_the_limits_are_refused(nested, message):
    with pytest.raises(ConfigError, match=message):
        training.hyperparameters(nested)


def test_metrics_are_those_the_built_in_program_prints(config, context):
    definitions = request(config(), context)["AlgorithmSpecification"]["MetricDefinitions"]
    assert definitions == [{"Name": name, "Regex": metric_regex(name)} for name in BUILTIN_METRICS]


def test_metrics_may_be_names_of_ones_own(config, context):
    body = request(config("training.metrics=[my:score]"), context)
    assert body["AlgorithmSpecification"]["MetricDefinitions"] == [
        {"Name": "my:score", "Regex": metric_regex("my:score")}
    ]


def test_spot_brings_a_waiting_time_and_checkpoints(config, context):
    body = request(config("training.spot=true", "training.max_runtime=2h"), context)
    assert body["EnableManagedSpotTraining"] is True
    assert body["StoppingCondition"]["MaxWaitTimeInSeconds"] == 4 * 3600
    assert body["CheckpointConfig"] == {"S3Uri": "s3://bucket/digits/checkpoints/digits-1"}


def test_checkpoints_may_be_named_to_resume_from_them(config, context):
    body = request(config("training.checkpoints=s3://b/mine"), context)
    assert body["CheckpointConfig"] == {"S3Uri": "s3://b/mine"}
    assert "CheckpointConfig" not in request(config("training.checkpoints=false"), context)
    assert "CheckpointConfig" in request(config("training.checkpoints=true"), context)


def test_a_local_channel_is_uploaded_to_a_place_of_the_projects_own(config, context, tmp_path):
    made = config("training.channels.train=./images", "training.code=src")
    body = request(made, context)
    uris = {item["ChannelName"]: item["DataSource"]["S3DataSource"]["S3Uri"] for item in body["InputDataConfig"]}
    assert uris == {"train": "s3://bucket/digits/data/train/", "code": "s3://bucket/digits/code/digits-1/"}
    assert training.uploads(made, context, tmp_path) == [
        Upload(tmp_path / "images", uris["train"]),
        Upload(tmp_path / "src", uris["code"], without=(tmp_path / "images",)),
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["training.channels.train=gone"], "training.channels.train: .*/gone does not exist"),
        (["training.code=gone"], "training.code: .*/gone is no directory"),
        (["training.code=src"], "src has fit.py, and no train.py; name the script in training.program"),
        (["training.code=src", "training.program=fit2.py"], "no fit2.py"),
    ],
)
def test_what_is_not_on_this_machine_is_told_before_anything_is_uploaded(config, tmp_path, settings, told):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "fit.py").touch()
    with pytest.raises(ConfigError, match=told):
        training.refuse_missing(config(*settings).training, tmp_path)


@pytest.mark.parametrize("program", ["fit.py", "fit", "package"])
def test_a_script_or_package_that_is_there_is_taken(config, tmp_path, program):
    (tmp_path / "src" / "package").mkdir(parents=True)
    (tmp_path / "src" / "fit.py").touch()
    training.refuse_missing(config("training.code=src", f"training.program={program}").training, tmp_path)


def test_a_script_of_ones_own_is_named_in_the_environment(config, context):
    assert request(config("training.code=src"), context)["Environment"]["SAGEMAKER_PROGRAM"] == "train.py"
    named = config("training.code=src", "training.program=fit.py")
    assert request(named, context)["Environment"]["SAGEMAKER_PROGRAM"] == "fit.py"


def test_the_container_is_told_its_time_limit_unless_the_project_names_one(config, context):
    told = request(config("training.max_runtime=2h"), context)
    assert told["Environment"] == {"SLIPWAY_MAX_RUNTIME_SECONDS": "7200"}
    own = config("training.max_runtime=2h", "training.environment.SLIPWAY_MAX_RUNTIME_SECONDS=60")
    assert request(own, context)["Environment"] == {"SLIPWAY_MAX_RUNTIME_SECONDS": "60"}


def test_an_environment_over_the_limit_is_refused_with_what_the_launcher_adds(config, context):
    full = [f"training.environment.A{number}=1" for number in range(99)]
    assert len(request(config(*full), context)["Environment"]) == 100
    with pytest.raises(ConfigError, match="makes 101 entries with SLIPWAY_MAX_RUNTIME_SECONDS and SAGEMAKER_PROGRAM"):
        request(config(*full, "training.code=src"), context)


def test_the_next_instance_type_can_be_asked_for(config, context):
    made = config("training.instance_type=[ml.g5.xlarge, ml.g6.xlarge]")
    (call,) = training.calls(made, context, "ml.g6.xlarge")
    assert call.request["ResourceConfig"]["InstanceType"] == "ml.g6.xlarge"


def test_a_warm_pool_is_kept(config, context):
    assert request(config("training.keep_alive=10m"), context)["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 600


@pytest.mark.parametrize(
    ("members", "finding"),
    [
        ({"InputDataConfig": [{"ChannelName": "sm_drivers"}, {"ChannelName": "my-data"}]}, "channel 'my-data'"),
        ({"HyperParameters": {"optimizer.lr": "1"}}, "hyperparameter 'optimizer.lr': its name"),
        ({"HyperParameters": {"text": "it's"}}, "a single quote in its value"),
    ],
)
def test_c72_names_that_break_the_sdks_driver_script_are_found(members, finding):
    body = {"InputDataConfig": [{"ChannelName": "sm_drivers"}], **members}
    assert any(finding in problem for problem in training.sdk_script_mode_problems(body))


def test_c72_without_the_sdks_driver_script_any_name_will_do():
    assert training.sdk_script_mode_problems({"HyperParameters": {"optimizer.lr": "it's"}}) == []

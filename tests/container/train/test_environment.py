"""What SageMaker's files mean, and the SM_* variables: ours against sagemaker-training's own."""

import json
import os
import subprocess
import sys

import pytest

from container.contract import BASE_DIR_VARIABLE, OptMl
from container.train.environment import (
    ConfigError,
    masked,
    read_environment,
    sm_variables,
    training_environment,
    usable_cores,
    user_arguments,
)

GOLDEN_HYPERPARAMETERS = {
    "batch-size": "256",
    "lr": "0.001",
    "opt": '"adamw"',
    "flag": "true",
    "layers": "[64, 10]",
    "x": "5",
    "sagemaker_program": '"train.py"',
    "sagemaker_job_name": '"j-1"',
    "sagemaker_torch_distributed_enabled": "true",
    "_tuning_objective_metric": "val:loss",
}
GOLDEN_CHANNELS = {"train": {"TrainingInputMode": "File"}}
GOLDEN_RESOURCES = {
    "current_host": "algo-1",
    "current_instance_type": "ml.p4d.24xlarge",
    "current_group_name": "homogeneousCluster",
    "hosts": ["algo-1", "algo-2"],
    "instance_groups": [
        {
            "instance_group_name": "homogeneousCluster",
            "instance_type": "ml.p4d.24xlarge",
            "hosts": ["algo-1", "algo-2"],
        }
    ],
    "network_interface_name": "eth0",
}
HETEROGENEOUS_RESOURCES = {
    "current_host": "algo-3",
    "current_instance_type": "ml.c6i.8xlarge",
    "current_group_name": "loaders",
    "hosts": ["algo-1", "algo-2", "algo-3"],
    "instance_groups": [
        {"instance_group_name": "trainers", "instance_type": "ml.p4d.24xlarge", "hosts": ["algo-2", "algo-1"]},
        {"instance_group_name": "loaders", "instance_type": "ml.c6i.8xlarge", "hosts": ["algo-3"]},
    ],
    "network_interface_name": "eth0",
    "topology": [{"anything": "opaque"}],
}


def test_c13_hyperparameter_values_decode_as_json(write_opt_ml):
    environment = read_environment(write_opt_ml(hyperparameters={"a": "1", "b": '"1"'}), {})
    assert environment.hyperparameters == {"a": 1, "b": "1"}


def test_c14_a_value_that_is_not_json_stays_a_string(write_opt_ml):
    environment = read_environment(write_opt_ml(hyperparameters={"optimizer": "adam", "id": "007"}), {})
    assert environment.hyperparameters == {"optimizer": "adam", "id": "007"}


def test_c15_c22_missing_or_empty_files_mean_no_hyperparameters_and_no_channels(write_opt_ml):
    environment = read_environment(write_opt_ml(), {})
    assert (environment.hyperparameters, environment.channels) == ({}, {})
    environment = read_environment(write_opt_ml(hyperparameters={}, channels={}), {})
    assert (environment.hyperparameters, environment.channels) == ({}, {})


def test_c16_reserved_hyperparameters_are_kept_from_the_users_arguments(write_opt_ml):
    reserved = {"sagemaker_job_name": "j", "sagemaker_region": "r", "sagemaker_container_log_level": "20"}
    hyperparameters = reserved | {"_tuning_objective_metric": "validation:auc", "lr": "0.1"}
    environment = read_environment(write_opt_ml(hyperparameters=hyperparameters), {})
    assert user_arguments(environment.hyperparameters) == ["--lr", "0.1"]


def test_c19_c21_channels_come_from_the_file_and_not_from_the_directory(write_opt_ml):
    opt_ml = write_opt_ml(channels={"train": {"TrainingInputMode": "File"}})
    (opt_ml.data / "train").mkdir(parents=True)
    (opt_ml.data / "train-manifest").write_text("{}")
    assert list(read_environment(opt_ml, {}).channels) == ["train"]


def test_c23_c24_c27_the_least_and_the_most_resourceconfig_are_read(write_opt_ml):
    least = read_environment(write_opt_ml(), {})
    assert (least.hosts, least.network_interface, least.current_group) == (("algo-1",), "eth0", "homogeneousCluster")
    most = read_environment(write_opt_ml(resources=HETEROGENEOUS_RESOURCES | {"future": {"key": 1}}), {})
    assert most.current_group == "loaders"


def test_c25_c26_ranks_follow_the_sorted_hosts_whatever_the_files_order(write_opt_ml):
    names = [f"algo-{number}" for number in range(12, 0, -1)]
    ranks = []
    for name in names:
        environment = read_environment(write_opt_ml(resources={"current_host": name, "hosts": names}), {})
        ranks.append(environment.hosts.index(name))
    assert sorted(ranks) == list(range(12))
    assert environment.hosts[:4] == ("algo-1", "algo-10", "algo-11", "algo-12")


def test_c28_groups_that_repeat_a_name_are_merged(write_opt_ml):
    groups = [{"instance_group_name": "g", "instance_type": "ml.m5.large", "hosts": [h]} for h in ("algo-1", "algo-2")]
    resources = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], "instance_groups": groups}
    assert read_environment(write_opt_ml(resources=resources), {}).instance_groups == {"g": ("algo-1", "algo-2")}


def test_c29_hosts_outside_the_training_group_have_no_rank_in_it(write_opt_ml):
    hyperparameters = {"sagemaker_distribution_instance_groups": '["trainers"]'}
    environment = read_environment(write_opt_ml(hyperparameters, resources=HETEROGENEOUS_RESOURCES), {})
    assert environment.training_hosts == ("algo-1", "algo-2")
    assert not environment.is_training_host


def test_c30_unknown_files_beside_the_configuration_are_ignored(write_opt_ml):
    opt_ml = write_opt_ml(hyperparameters={"a": "1"})
    (opt_ml.config / "init-config.json").write_text("not json")
    assert read_environment(opt_ml, {}).hyperparameters == {"a": 1}


def test_c33_a_job_without_a_name_is_read(write_opt_ml):
    assert read_environment(write_opt_ml(), {}).job_name is None


@pytest.mark.parametrize("content", ["[1]", "{", '"text"'])
def test_a_broken_file_is_named_in_the_error(write_opt_ml, content):
    opt_ml = write_opt_ml()
    opt_ml.hyperparameters.write_text(content)
    with pytest.raises(ConfigError, match=r"hyperparameters\.json"):
        read_environment(opt_ml, {})


@pytest.mark.parametrize("missing", ["current_host", "hosts"])
def test_a_resourceconfig_without_its_two_keys_is_an_error_that_shows_the_least(write_opt_ml, missing):
    resources = {"current_host": "algo-1", "hosts": ["algo-1"]}
    del resources[missing]
    with pytest.raises(ConfigError, match=f"no '{missing}'"):
        read_environment(write_opt_ml(resources=resources), {})


def test_a_script_that_is_run_by_itself_has_an_environment_of_one_host(tmp_path, monkeypatch):
    monkeypatch.setenv(BASE_DIR_VARIABLE, str(tmp_path))
    environment = training_environment()
    assert (environment.hosts, environment.is_training_host) == (("algo-1",), True)
    assert (environment.hyperparameters, environment.channels, environment.job_name) == ({}, {}, None)
    assert environment.checkpoint_dir is None
    (tmp_path / "input/config").mkdir(parents=True)
    with pytest.raises(ConfigError, match="resourceconfig.json has no 'current_host'"):
        training_environment()


def test_the_golden_sample_of_sm_variables(write_opt_ml):
    environment = read_environment(write_opt_ml(GOLDEN_HYPERPARAMETERS, GOLDEN_CHANNELS, GOLDEN_RESOURCES), {})
    variables = sm_variables(environment, "train.py")
    assert variables["SM_HPS"] == '{"batch-size":256,"flag":true,"layers":[64,10],"lr":0.001,"opt":"adamw","x":5}'
    assert variables["SM_FRAMEWORK_PARAMS"] == '{"sagemaker_torch_distributed_enabled":true}'
    assert (variables["SM_MODULE_NAME"], variables["SM_USER_ENTRY_POINT"]) == ("train", "train.py")
    assert variables["SM_DISTRIBUTION_INSTANCE_GROUPS"] == '["homogeneousCluster"]'
    assert variables["SM_IS_HETERO"] == "false"
    arguments = "--batch-size 256 --flag True --layers|[64, 10]|--lr 0.001 --opt adamw -x 5"
    words = [word for part in arguments.split("|") for word in ([part] if part.startswith("[") else part.split())]
    assert user_arguments(environment.hyperparameters) == words


def test_c32_both_spellings_of_a_hyperparameter_are_set(write_opt_ml):
    environment = read_environment(write_opt_ml(GOLDEN_HYPERPARAMETERS, GOLDEN_CHANNELS, GOLDEN_RESOURCES), {})
    variables = sm_variables(environment, "train.py")
    assert variables["SM_HP_BATCH-SIZE"] == variables["SM_HP_BATCH_SIZE"] == "256"
    assert (variables["SM_HOST_COUNT"], variables["SM_CURRENT_HOST_RANK"]) == ("2", "0")


REFERENCE = """
import json, sys
from sagemaker_training.environment import Environment
from sagemaker_training import mapping
environment = Environment()
print("RESULT" + json.dumps([environment.to_env_vars(), environment.to_cmd_args()]))
"""


@pytest.mark.parametrize("resources", [GOLDEN_RESOURCES, HETEROGENEOUS_RESOURCES], ids=["golden", "heterogeneous"])
def test_c31_sm_variables_equal_those_of_sagemaker_training(write_opt_ml, resources):
    odd = {"Dotted.Name": "1.5", "none": "null", "nested": '{"b": 2, "a": [1]}', "text": 'it\'s "quoted" $HOME é\n'}
    channels = GOLDEN_CHANNELS | {"my-Channel.x": {"TrainingInputMode": "Pipe", "RecordWrapperType": "RecordIO"}}
    opt_ml = write_opt_ml(GOLDEN_HYPERPARAMETERS | odd, channels, resources)
    environ = {"PATH": os.environ["PATH"], "SAGEMAKER_BASE_DIR": str(opt_ml.base), "TRAINING_JOB_NAME": "a-job"}
    answer = subprocess.run(
        [sys.executable, "-c", REFERENCE], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    theirs, their_arguments = json.loads(answer.stdout.partition("RESULT")[2])

    environment = read_environment(OptMl.from_env(environ), environ)
    ours = sm_variables(environment, "train.py")

    their_training_env = json.loads(theirs.pop("SM_TRAINING_ENV"))
    assert json.loads(ours["SM_TRAINING_ENV"]) == their_training_env
    assert {name: ours.get(name) for name in theirs} == theirs
    assert user_arguments(environment.hyperparameters) == their_arguments


def test_c34_values_of_secret_looking_names_are_masked():
    values = {"api_key": "a", "Password": "b", "hf_token": "c", "my_secret": "d", "credentials": "e", "lr": 1}
    assert masked(values) == dict.fromkeys(list(values)[:5], "******") | {"lr": 1}


def test_cores_are_at_least_one_and_at_most_those_of_the_affinity_mask():
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))

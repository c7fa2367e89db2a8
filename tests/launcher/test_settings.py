"""launcher.yaml is read once, checked, and every finding says where and what to write instead."""

import pytest

from launcher.errors import ConfigError
from launcher.settings import load


def settings(tmp_path, text, *overrides, **options):
    path = tmp_path / "launcher.yaml"
    path.write_text(text)
    return load(path, overrides, **options)


def test_a_project_without_a_file_has_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load(None).config.training.max_runtime == 86400


def test_the_file_in_this_directory_is_found_without_being_named(tmp_path, monkeypatch):
    (tmp_path / "launcher.yaml").write_text("name: found")
    monkeypatch.chdir(tmp_path)
    assert load(None).config.name == "found"


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h30m", 5400), ("2d", 172800)])
def test_durations_carry_units(tmp_path, text, seconds):
    assert settings(tmp_path, f"training: {{max_runtime: {text}}}").config.training.max_runtime == seconds


@pytest.mark.parametrize(("text", "gigabytes"), [("50", 50), ("50GB", 50), ("1TB", 1024)])
def test_sizes_carry_units(tmp_path, text, gigabytes):
    assert settings(tmp_path, f"training: {{volume_size_gb: {text}}}").config.training.volume_size_gb == gigabytes


def test_a_variable_is_replaced_and_typed_like_plain_yaml(tmp_path):
    text = "training:\n  instance_count: ${COUNT:-2}\n  environment:\n    WHO: '${WHO:-7}'\n"
    found = settings(tmp_path, text, environ={"COUNT": "3"})
    assert found.config.training.instance_count == 3
    assert found.config.training.environment == {"WHO": "7"}
    assert found.origins["training.instance_count"].endswith("launcher.yaml:2 (COUNT)")


def test_an_override_is_typed_as_yaml_and_wins(tmp_path):
    found = settings(
        tmp_path, "training: {instance_count: 1}", "training.instance_count=4", "training.hyperparameters={lr: 0.1}"
    )
    assert found.config.training.instance_count == 4
    assert found.config.training.hyperparameters == {"lr": 0.1}
    assert found.origins["training.instance_count"] == "--set"


def test_an_override_refines_a_channel_written_as_text(tmp_path):
    found = settings(tmp_path, "training: {channels: {train: s3://b/x/}}", "training.channels.train.mode=FastFile")
    assert found.config.training.channels["train"].source == "s3://b/x/"
    assert found.config.training.channels["train"].mode == "FastFile"


def test_defaults_of_the_local_sagemaker_yield_to_the_file(tmp_path):
    given = {"role": ("theirs", "--local"), "images.registry": ("", "--local")}
    found = settings(tmp_path, "role: mine", defaults=lambda _: given)
    assert found.config.role == "mine"
    assert found.config.images.registry == ""
    assert found.origins["images.registry"] == "--local"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig: {}", "launcher.yaml:1: unknown setting 'trainig'; did you mean 'training'?"),
        ("name: a\ntraining:\n  instance_typ: x", "launcher.yaml:3: unknown setting 'training.instance_typ'"),
        ("endpoint: {variants: [{name: a, modle: b}]}", "unknown setting 'endpoint.variants.0.modle'"),
        ("training: {zzz: 1}", "known here: instance_type"),
        ("training: {instance_count: 0}", "training.instance_count=0: it must be at least 1"),
        (
            "training: {epochs: 3}",
            "a hyperparameter stands at training.hyperparameters.epochs; known here: instance_type",
        ),
        ("training: {hyperparameters: 3}", "training.hyperparameters=3: it must be a mapping, such as {key: value}"),
        ("training: {instance_type: g5.xlarge}", "='g5.xlarge': it is no instance type; write it like ml.g5.xlarge"),
        ("training: {checkpoints: {s3_uri: not-s3://b}}", "it is no S3 URI; write it like s3://bucket/folder"),
        ("training: {channels: {a: {mode: File}}}", "training.channels.a.source: it must be set"),
        ("training: {input_mode: fastfile}", "it must be 'File', 'FastFile' or 'Pipe'"),
        ("name: a_b", "name='a_b': it may have letters, digits and, between them, hyphens"),
        ("endpoint: {scaling: {max: 2, schedule: [{name: a, when: noon, min: 1}]}}", "write it like cron(0 8"),
        ("training: {max_runtime: 9 hours}", "'9 hours' is no duration; write it like"),
        ("training: {volume_size_gb: 9 stones}", "'9 stones' is no size; write it like"),
        ("training: {max_runtime: 30d}", "it must be at most 2419200"),
        ("training: {channels: {a-b: s3://x}}", "training.channels.a-b"),
        ("training: {channels: {a: {source: 's3://b', data_type: AugmentedManifestFile}}}", "set mode: Pipe"),
        ("training: {channels: {a: {source: s3://b, data_type: ManifestFile, mode: FastFile}}}", "use File"),
        ("training: {channels: {a: {source: 'fs-12345678:/x', mode: Pipe}}}", "mode must be File"),
        ("training: {input_mode: Pipe, channels: {a: 'fs-12345678:/x'}}", "channels.a: a file system is mounted"),
        ("training: {input_mode: FastFile, channels: {a: {source: s3://b, data_type: ManifestFile}}}", "use File"),
        ("training: {channels: {a: {source: s3://b, compression: Gzip}}}", "compression=Gzip is for Pipe mode only"),
        ("training: {channels: {a: {source: s3://b, record_wrapper: RecordIO, mode: FastFile}}}", "for Pipe mode only"),
        ("training: {channels: {a: {source: s3://b, instance_groups: [gpu]}}}", "instance_groups has no such name"),
        ("training: {spot: true, keep_alive: 10m}", "exclude each other"),
        ("training: {keep_alive: 10m, instance_groups: [{name: a, instance_type: ml.m5.large}]}", "not available with"),
        ("training: {max_runtime: 2h, spot: {max_wait: 1h}}", "is shorter than max_runtime"),
        ("training: {program: a.py}", "needs code"),
        ("transform: {max_concurrent: 20, max_payload_mb: 6}", "is over 100"),
        ("transform: {join: Input, split: Line, assemble: None}", "needs split: Line"),
        ("endpoint: {serverless: true, capture: true}", "serverless excludes capture"),
        ("endpoint: {scaling: {max: 2}}", "scaling.target is not set"),
        ("endpoint: {scaling: {min: 0, max: 2, target: 5}}", "needs asynchronous: true"),
        ("endpoint: {containers: [{name: a}]}", "several containers are at least two"),
        (
            "endpoint: {multi_model: true, model: s3://b/m/, containers: [{name: a}, {name: b}]}",
            "containers excludes variants",
        ),
        (
            "endpoint: {multi_model: true}",
            "multi_model: true and model=''; many models lie below a prefix such as s3://",
        ),
        ("endpoint: {multi_model: true, model: s3://b/m.tar.gz}", "many models lie below a prefix"),
        ("endpoint: {multi_model: true, model: s3://b/m/, asynchronous: true}", "multi_model excludes asynchronous"),
        ("endpoint: {serverless: true, rollout: {type: canary}}", "serverless excludes rollout"),
        ("endpoint: {scaling: {min: 3, max: 2}}", "min=3 is larger than max=2"),
        ("network: {subnets: [subnet-1]}", "go together"),
        ("name: ${NOT_SET}", "launcher.yaml:1: the variable NOT_SET is not set"),
        ("name: [", "launcher.yaml:2 is not YAML: "),
        ("name: x\ntraining:\n\tcode: a", "launcher.yaml:3 is not YAML: found character that cannot start any token; "),
        ("- a", "must be a mapping"),
    ],
)
def test_a_mistake_is_named_with_its_place_and_its_remedy(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, text, environ={})
    assert message in str(error.value)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; `python -m launcher init`"):
        load(tmp_path / "nowhere.yaml")


def test_an_override_without_a_value_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no '='"):
        settings(tmp_path, "", "training.instance_count")


def test_an_override_that_is_not_yaml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not YAML; quote it"):
        settings(tmp_path, "", "name=[")


def test_the_configuration_cannot_be_changed_afterwards(tmp_path):
    found = settings(tmp_path, "name: a").config
    with pytest.raises(ValueError, match="frozen"):
        found.name = "b"


def test_tags_that_the_limits_ask_for_must_be_there(tmp_path):
    limits = "limits: {required_tags: [team, cost-center]}\n"
    with pytest.raises(ConfigError, match=r"yaml:1: limits\.required_tags asks for the tags team, cost-center; set "):
        settings(tmp_path, limits)
    with pytest.raises(ConfigError, match="asks for the tags cost-center"):
        settings(tmp_path, f"{limits}tags: {{team: a}}")
    found = settings(tmp_path, f"{limits}tags: {{team: a}}", "tags.cost-center=7")
    assert found.config.tags == {"team": "a", "cost-center": "7"}


def test_a_channel_inherits_the_mode_that_all_have(tmp_path):
    text = "training: {input_mode: Pipe, channels: {a: {source: s3://b, data_type: AugmentedManifestFile}}}"
    assert settings(tmp_path, text).config.training.channels["a"].mode is None

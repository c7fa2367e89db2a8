"""A model's container started once, to be asked."""

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from launcher import cli
from launcher.check.probe import parameters, probe, settings_of
from launcher.check.process_target import ProcessTarget
from launcher.check.target import CheckFailed
from launcher.errors import ConfigError

FAKE = Path(__file__).with_name("fake_container.py")


def fake(*faults):
    return ProcessTarget((sys.executable, str(FAKE), *(word for fault in faults for word in ("--fault", fault))))


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text("{}")
    return tmp_path / "model"


def test_a_container_says_what_it_proposes_and_how_long_it_loads(model, tmp_path):
    found = probe(fake(), model, {}, tmp_path / "bench")
    assert found.execution_parameters == {
        "MaxConcurrentTransforms": 2,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 6,
    }
    assert 0 < found.load_seconds < 480
    assert not (tmp_path / "bench").exists()


def test_a_container_without_the_path_proposes_nothing_but_time(model, tmp_path):
    found = probe(fake("no-execution-parameters"), model, {}, tmp_path / "bench")
    assert settings_of(found.execution_parameters) == {}


def test_a_container_that_ends_says_why(model, tmp_path):
    with pytest.raises(CheckFailed, match="serve ended with exit code"):
        probe(ProcessTarget((sys.executable, "-c", "raise SystemExit(3)")), model, {}, tmp_path / "bench")


@pytest.mark.parametrize(
    "body",
    [b"no", b"[1]", b'{"BatchStrategy":"Line"}', b'{"MaxConcurrentTransforms":"many"}', b'{"MaxPayloadInMB":null}'],
)
def test_an_answer_that_a_job_would_fail_on_is_refused(body):
    with pytest.raises(CheckFailed, match="must be whole numbers, BatchStrategy MULTI_RECORD or SINGLE_RECORD"):
        parameters(body)


def test_proposals_are_settings_in_the_launchers_words():
    answer = {"MaxConcurrentTransforms": 8, "BatchStrategy": "SINGLE_RECORD", "MaxPayloadInMB": 6}
    assert settings_of(answer) == {
        "transform.max_concurrent": "8",
        "transform.strategy": "SingleRecord",
        "transform.max_payload_mb": "6",
    }


# --- the verb ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def verb(aws, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.aws.Aws", lambda region: aws)
    (tmp_path / "launcher.yaml").write_text("name: digits\nrole: arn:aws:iam::123456789012:role/jobs\n")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("model.json")
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    target = [fake()]
    monkeypatch.setattr("launcher.commands.probe.target_of", lambda *_: target[0])

    def run(*arguments, container=None):
        target[0] = container or target[0]
        return cli.main([*(arguments or ("transform", "./model.tar.gz", "--probe"))])

    return run


def test_the_verb_prints_what_to_set_and_starts_no_job(verb, sent, capsys):
    assert verb() == 0
    printed = capsys.readouterr().out
    assert "transform.max_concurrent  2" in printed
    assert "next: python -m launcher transform ./model.tar.gz --set transform.max_concurrent=2" in printed
    assert verb("transform", "./model.tar.gz", "--probe", "--json") == 0
    assert json.loads(capsys.readouterr().out)["proposals"]["transform.strategy"] == "MultiRecord"
    assert not [operation for operation, _ in sent if operation.startswith("Create") and operation != "CreateBucket"]


def test_the_verb_tells_why_a_container_does_not_start(verb, capsys):
    assert verb(container=ProcessTarget((sys.executable, "-c", "raise SystemExit(3)"))) == 5
    assert "serve ended with exit code 3" in capsys.readouterr().err


def test_deploy_measures_how_long_the_models_load_and_says_so_in_the_next_plan(verb, sent, capsys, tmp_path):
    assert verb("deploy", "./model.tar.gz", "--probe") == 0
    printed = capsys.readouterr().out
    assert "-> main: healthy after" in printed
    assert "startup_timeout SageMaker's own: loaded in" in printed
    assert "next: python -m launcher deploy ./model.tar.gz" in printed
    assert "CreateEndpoint" not in [operation for operation, _ in sent]
    assert "deploy --probe" in (tmp_path / ".launcher" / "load-times.json").read_text()
    assert verb("deploy", "--probe", "--json", "--set", "endpoint.variants=[{name: a, model: ./model.tar.gz}]") == 0
    assert json.loads(capsys.readouterr().out)["a"]["startup_timeout"] is None


def test_many_models_are_not_measured(verb, capsys):
    many = ["--set", "endpoint.multi_model=true", "--set", "endpoint.model=s3://bucket/models/"]
    assert verb("deploy", "--probe", *many) == 2
    assert "loads its models when they are asked for" in capsys.readouterr().err


@pytest.fixture
def proposed(aws, verb, project, monkeypatch, caplog):
    """What `transform` tells of the settings that are left open."""
    from launcher.commands import probe as commands
    from launcher.commands.options import Options
    from launcher.settings import Settings

    def run(*overrides, local=False):
        caplog.clear()
        made = project("transform.model=./model.tar.gz", *overrides)
        options = Options(None, (), local=local, dry_run=False, json=False, no_wait=False)
        with caplog.at_level("INFO", "launcher"):
            commands.propose(options, Settings(made.config, {}, made.directory), made)
        return caplog.text

    return run


def test_a_container_is_asked_once_for_what_the_file_leaves_open(proposed, monkeypatch):
    told = proposed()
    assert "asking" in told
    assert "transform.max_concurrent: not set; the container proposes 2" in told
    assert "transform.strategy: not set; the container proposes MultiRecord" in told
    monkeypatch.setattr("launcher.commands.probe.ask", lambda *_: pytest.fail("it was asked again"))
    told = proposed("transform.strategy=SingleRecord")
    assert "transform.max_payload_mb: not set; the container proposes 6" in told
    assert "transform.strategy" not in told
    assert (
        proposed(*(f"transform.{item}" for item in ("strategy=SingleRecord", "max_concurrent=1", "max_payload_mb=1")))
        == ""
    )


def test_a_container_that_cannot_be_asked_here_stops_no_job(proposed, monkeypatch):
    dead = ProcessTarget((sys.executable, "-c", "raise SystemExit(3)"))
    monkeypatch.setattr("launcher.commands.probe.target_of", lambda *_: dead)
    told = proposed()
    assert "it cannot be asked here: serve ended with exit code 3" in told
    assert "the container says when the job starts; --probe asks it here" in told


def test_a_large_archive_or_an_image_elsewhere_is_not_asked_unasked(proposed, monkeypatch):
    def missing(*_):
        raise ConfigError("not here")

    monkeypatch.setattr("launcher.commands.probe.target_of", missing)
    assert "--probe asks it here" in proposed()
    monkeypatch.setattr("launcher.commands.probe.UNASKED_BYTES", 1)
    assert "--probe asks it here" in proposed()
    assert "--probe asks it here" in proposed(local=True)


def test_an_image_that_is_not_here_cannot_be_asked(aws, config):
    from launcher.commands.options import Options
    from launcher.commands.probe import target_of
    from launcher.settings import Settings

    options = Options(None, (), local=False, dry_run=False, json=False, no_wait=False)
    settings = Settings(config("images.serving.uri=no/such:image"), {}, Path())
    with pytest.raises(ConfigError, match="'no/such:image' cannot be tested"):
        target_of(options, settings)

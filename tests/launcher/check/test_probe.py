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
        return cli.main(["transform", "./model.tar.gz", "--probe", *arguments])

    return run


def test_the_verb_prints_what_to_set_and_starts_no_job(verb, sent, capsys):
    assert verb() == 0
    printed = capsys.readouterr().out
    assert "transform.max_concurrent  2" in printed
    assert "next: python -m launcher transform ./model.tar.gz --set transform.max_concurrent=2" in printed
    assert verb("--json") == 0
    assert json.loads(capsys.readouterr().out)["proposals"]["transform.strategy"] == "MultiRecord"
    assert not [operation for operation, _ in sent if operation.startswith("Create") and operation != "CreateBucket"]


def test_the_verb_tells_why_a_container_does_not_start(verb, capsys):
    assert verb(container=ProcessTarget((sys.executable, "-c", "raise SystemExit(3)"))) == 5
    assert "serve ended with exit code 3" in capsys.readouterr().err


def test_an_image_that_is_not_here_cannot_be_asked(aws, config):
    from launcher.commands.options import Options
    from launcher.commands.probe import target_of
    from launcher.errors import ConfigError
    from launcher.settings import Settings

    options = Options(None, (), local=False, dry_run=False, json=False, no_wait=False)
    settings = Settings(config("images.serving.uri=no/such:image"), {}, Path())
    with pytest.raises(ConfigError, match="'no/such:image' cannot be tested"):
        target_of(options, settings)

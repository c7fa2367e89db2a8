"""A project on moto's AWS, and canned replies for what moto has not."""

import json
import logging
import os
import secrets
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from launcher.aws import Aws
from launcher.config import Config
from launcher.data import Silent
from launcher.jobs.api import JobContext
from launcher.local.containers import free_port
from launcher.project import Project
from launcher.settings import load

REGION = "us-east-1"
ACCOUNT = "123456789012"


@pytest.fixture(autouse=True)
def launchers_own_log() -> Iterator[None]:
    """What a verb does to the launcher's logger ends with the test."""
    logger = logging.getLogger("launcher")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def context() -> JobContext:
    return JobContext("digits-1", "111122223333", REGION, "bucket", "arn:aws:iam::111122223333:role/jobs")


@pytest.fixture
def config(tmp_path) -> Callable[..., Config]:
    """A configuration of `--set` texts, or of a YAML text."""

    def make(*overrides: str, yaml: str = "name: digits\n") -> Config:
        path = tmp_path / "launcher.yaml"
        path.write_text(yaml)
        return load(path, overrides).config

    return make


@pytest.fixture
def no_credentials(monkeypatch, tmp_path) -> None:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture
def aws(monkeypatch, no_credentials) -> Iterator[Aws]:
    """A region of moto's; nothing leaves the process."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    # moto has no ListServiceQuotas
    asked = "moto.servicequotas.responses.ServiceQuotasResponse.list_service_quotas"
    monkeypatch.setattr(asked, lambda _: '{"Quotas": []}', raising=False)
    with mock_aws():
        yield Aws(REGION)


@pytest.fixture
def sent(aws) -> list[tuple[str, dict[str, Any]]]:
    """Every (operation, request) as botocore gets it, whoever sends it."""
    calls: list[tuple[str, dict[str, Any]]] = []
    aws.session.events.register(
        "provide-client-params.*.*", lambda params, model, **_: calls.append((model.name, dict(params)))
    )
    return calls


@pytest.fixture
def canned(aws) -> Callable[..., None]:
    """Answers an operation after botocore has validated and serialised the request; the last reply repeats."""

    def answer(operation: str, *replies: dict[str, Any], service: str = "sagemaker") -> None:
        waiting = list(replies)

        def reply(**_: Any) -> tuple[Any, dict[str, Any]]:
            value = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            status = 400 if "Error" in value else 200
            return SimpleNamespace(status_code=status, headers={}), dict(value)

        aws.session.events.register(f"before-call.{service}.{operation}", reply)

    return answer


@pytest.fixture
def project(aws, tmp_path) -> Callable[..., Project]:
    """A project in `tmp_path`, on moto."""

    def make(*overrides: str, yaml: str = "name: digits\nrole: arn:aws:iam::123456789012:role/jobs\n") -> Project:
        path = tmp_path / "launcher.yaml"
        path.write_text(yaml)
        settings = load(path, overrides)
        return Project(settings.config, tmp_path, aws, Silent())

    return make


@pytest.fixture
def image_names() -> Iterator[Callable[[str], str]]:
    """Repository names that no other run on this engine has; what is tagged with one is removed in the end."""
    run = secrets.token_hex(4)
    yield lambda what: f"slipway-test-{run}-{what}"
    from launcher.images.build import engine

    client = engine()
    for found in client.images.list():
        for tag in found.tags:
            if f"slipway-test-{run}-" in tag:
                client.images.remove(tag, force=True)


@pytest.fixture(scope="session")
def registry_host(tmp_path_factory) -> Iterator[str]:
    """A real registry on a loopback port: `host:port`."""
    if shutil.which("docker-registry") is None and not os.environ.get("CI"):
        pytest.skip("no docker-registry: apt-get install docker-registry")
    directory = tmp_path_factory.mktemp("registry")
    port = free_port()
    settings = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (directory / "config.yml").write_text(yaml.safe_dump(settings))
    command = ["docker-registry", "serve", str(directory / "config.yml")]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while not answers(f"http://127.0.0.1:{port}/v2/"):
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline, "docker-registry does not answer"
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False


@pytest.fixture
def ecr(aws, registry_host) -> Aws:
    """Moto's ECR, whose repositories lie in the real registry."""

    def rewrite(parsed: dict[str, Any], **_: Any) -> None:
        for data in parsed.get("authorizationData", []):
            data["proxyEndpoint"] = f"http://{registry_host}"
        single = [parsed["repository"]] if "repository" in parsed else []
        for repository in parsed.get("repositories", []) + single:
            repository["repositoryUri"] = f"{registry_host}/{repository['repositoryName']}"

    aws.session.events.register("after-call.ecr", rewrite)
    return aws


@pytest.fixture
def golden() -> Callable[[str, Any], None]:
    """Compares with a file under jobs/golden; where it is missing it is written, to be read and committed."""

    def compare(name: str, value: Any) -> None:
        path = Path(__file__).parent / "jobs" / "golden" / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(value, indent=2) + "\n")
            pytest.fail(f"{path} was missing and has been written: read it, commit it, run again")
        assert value == json.loads(path.read_text())

    return compare

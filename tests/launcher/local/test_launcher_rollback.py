"""The launcher's deploy and rollback against the local SageMaker: an update under way that must go back."""

import tarfile

import pytest

from launcher.aws import Aws
from launcher.data import Silent
from launcher.deployment import deploy, rollback
from launcher.deployment.delete import delete
from launcher.errors import ConfigError
from launcher.local import client
from launcher.project import Project
from launcher.settings import load

YAML = """
name: back
role: arn:aws:iam::123456789012:role/any
images: {registry: "", serving: {cuda: null}}
endpoint:
  instance_type: ml.m5.large
  model: ./model.tar.gz
  rollout: {type: canary, percent: 50, wait: 1h, timeout: 8h}
"""
ALARMS = "endpoint.rollout.alarms=[{metric: errors, above: 5}]"


@pytest.fixture(scope="module")
def server(tmp_path_factory, server_environment):
    """A local SageMaker on which an hour is twelve seconds."""
    home = tmp_path_factory.mktemp("back")
    yield client.up(home, server_environment(SLIPWAY_LOCAL_SPEED="300"))
    client.down(home)


@pytest.fixture
def project(server, tmp_path, monkeypatch):
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "launcher.yaml").write_text(YAML)
    (tmp_path / "weights").write_text("w")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "weights", "weights")

    def make(*overrides):
        settings = load(tmp_path / "launcher.yaml", overrides)
        return Project(settings.config, tmp_path, Aws(settings.config.region), Silent(), tmp_path / "home")

    yield make
    delete(make(), "back")


def deployed(project, wait=True):
    planned = deploy.plan(project)
    deploy.apply(project, planned)
    (deploy.finish if wait else deploy.note)(project, planned)
    return planned


def serving(project):
    return project.aws.call("sagemaker", "DescribeEndpoint", EndpointName="back")["EndpointConfigName"]


@pytest.mark.slow
def test_an_update_under_way_goes_back_at_once_by_our_alarm_and_forth_again(project):
    first = deployed(project())
    with pytest.raises(ConfigError, match="nothing to go back to"):
        rollback.begin(project(), "back")
    changed = project("endpoint.environment.PREFIX=new", ALARMS)
    second = deployed(changed, wait=False)
    assert [step.action for step in deploy.plan(changed).steps][-1] == "keep"  # the same again waits
    with pytest.raises(ConfigError, match="takes no other change meanwhile"):
        deploy.plan(project())
    back = rollback.begin(changed, "back", wait=False)
    rollback.finish(changed, back)
    assert serving(changed) == first.config_name
    forth = rollback.begin(changed, "back")
    assert forth.config_name == second.config_name
    rollback.finish(changed, forth)
    assert serving(changed) == second.config_name


@pytest.mark.slow
def test_an_update_that_no_alarm_of_ours_watches_ends_and_then_goes_back(project):
    first = deployed(project())
    changed = project("endpoint.environment.PREFIX=new", "endpoint.rollout.wait=10m")
    deployed(changed, wait=False)
    with pytest.raises(ConfigError, match="without --no-wait"):
        rollback.begin(changed, "back", wait=False)
    rollback.finish(changed, rollback.begin(changed, "back"))
    assert serving(changed) == first.config_name

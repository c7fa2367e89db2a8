"""Images reach a real registry behind moto's ECR; what SageMaker would refuse is found when it arrives."""

import contextlib
import json
import os
import urllib.request
from datetime import UTC, datetime

import pytest
from docker.errors import ImageNotFound

from launcher import cli
from launcher.aws import Aws
from launcher.config.images import TrainingImage
from launcher.console import Lines
from launcher.data import Silent
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.images import build as images
from launcher.images import registry

DOCKERFILE = "FROM scratch\nCOPY packages /\nCOPY code /\n"


class Counter(Silent):
    def __init__(self):
        self.done = 0

    def advance(self, count_bytes):
        self.done += count_bytes


@pytest.fixture
def image(image_names):
    return TrainingImage(repository=image_names("push"), tag="1", keep=3)


@pytest.fixture
def built(tmp_path, image):
    """Builds an image of 3 MB of packages and a line of code: what changes is the code."""
    (tmp_path / "Dockerfile.train").write_text(DOCKERFILE)
    (tmp_path / "packages").write_bytes(os.urandom(3_000_000))
    made = []

    def build(code):
        (tmp_path / "code").write_text(code)
        made.append(images.build(image, tmp_path))

    yield build
    client = images.engine()
    for identity in made:
        with contextlib.suppress(ImageNotFound):  # built twice, it is gone by now
            client.images.remove(identity, force=True)


@pytest.fixture
def push(ecr, image):
    """Pushes it behind moto's ECR, without a pause before another attempt."""
    return lambda progress=None: registry.push(ecr, image, None, progress or Silent(), retry_seconds=0)


@pytest.mark.docker
def test_a_push_makes_the_repository_and_returns_a_digest(ecr, built, registry_host, push, image):
    built("one")
    progress = Counter()
    pushed = push(progress)
    assert pushed.uri.startswith(f"{registry_host}/{image.repository}@sha256:")
    assert 3_000_000 < pushed.size_bytes < 3_100_000
    assert progress.done == pushed.uploaded_bytes >= 3_000_000
    (repository,) = ecr.call("ecr", "DescribeRepositories")["repositories"]
    assert repository["imageScanningConfiguration"] == {"scanOnPush": True}
    assert repository["imageTagMutability"] == "IMMUTABLE"
    policy = ecr.call("ecr", "GetLifecyclePolicy", repositoryName=image.repository)["lifecyclePolicyText"]
    assert json.loads(policy)["rules"][0]["selection"]["countNumber"] == 3


@pytest.mark.docker
def test_a_push_after_a_change_of_code_sends_the_code_alone(built, push):
    built("one")
    first = push()
    built("two")
    second = push()
    assert second.uploaded_bytes < 10_000
    assert second.uri != first.uri
    assert second.tag != first.tag


@pytest.mark.docker
def test_what_is_there_already_is_not_pushed_over_an_immutable_tag(built, push, monkeypatch):
    built("one")
    first = push()
    monkeypatch.setattr(registry, "_send", None)
    assert push() == registry.Pushed(first.uri, first.tag, first.size_bytes, 0)


@pytest.mark.docker
def test_jobs_use_the_digest_that_was_pushed(ecr, built, tmp_path, monkeypatch, capsys, image):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "launcher.yaml").write_text(f"images: {{training: {{repository: {image.repository}, tag: '1'}}}}")
    monkeypatch.setattr("launcher.aws.Aws", lambda region: ecr)
    built("one")
    assert cli.main(["push", "training", "--json", "--output", "images.json"]) == 0
    pushed = json.loads(capsys.readouterr().out)["training"]["uri"]
    assert json.loads((tmp_path / "images.json").read_text())["training"]["uri"] == pushed
    assert cli.main(["train", "--dry-run", "--json"]) == 0
    (call,) = json.loads(capsys.readouterr().out)
    assert call["request"]["AlgorithmSpecification"]["TrainingImage"] == pushed
    assert cli.main(["train", "--dry-run", "--json", "--set", "region=eu-west-1"]) == 0
    (elsewhere,) = json.loads(capsys.readouterr().out)
    assert "eu-west-1" in elsewhere["request"]["AlgorithmSpecification"]["TrainingImage"]


@pytest.mark.docker
def test_an_index_of_several_images_is_refused(ecr, built, registry_host, push, image):
    built("one")
    pushed = push()
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                "mediaType": media_type(),
                "digest": pushed.uri.partition("@")[2],
                "size": manifest_size(registry_host, image, pushed),
            }
        ],
    }
    put_manifest(registry_host, image, "index", index)
    with pytest.raises(JobFailed, match="is an index of several images"):
        inspect(ecr, registry_host, image, "index")


@pytest.mark.docker
def test_a_tag_that_is_not_there_cannot_be_read_back(ecr, registry_host, image):
    with pytest.raises(JobFailed, match="cannot be read back"):
        inspect(ecr, registry_host, image, "no-such-tag")


@pytest.mark.docker
def test_an_image_that_was_not_built_is_named(ecr):
    with pytest.raises(ConfigError, match="there is no image slipway-test-none:latest on this machine"):
        registry_push(ecr, TrainingImage(repository="slipway-test-none"))


@pytest.mark.docker
def test_a_push_that_fails_is_tried_again_with_a_fresh_login(built, monkeypatch, caplog, push):
    built("one")
    logins = []
    login = registry.log_in

    def first_one_is_refused(aws):
        logins.append(login(aws))
        if len(logins) == 1:
            raise_once.append(True)
        return logins[-1]

    raise_once = []
    send = registry._send

    def send_or_fail(*arguments):
        if raise_once:
            raise_once.pop()
            raise JobFailed("the push failed: connection reset")
        return send(*arguments)

    monkeypatch.setattr(registry, "log_in", first_one_is_refused)
    monkeypatch.setattr(registry, "_send", send_or_fail)
    push()
    assert len(logins) == 2


@pytest.mark.docker
def test_a_registry_that_is_gone_fails_after_three_attempts(built, monkeypatch, push, image):
    built("one")
    monkeypatch.setattr(registry, "ensure_repository", lambda *_: f"127.0.0.1:9/{image.repository}")
    with pytest.raises(JobFailed, match="push 127.0.0.1:9/.*-push:.* failed"):
        push()


@pytest.mark.docker
def test_another_registry_needs_no_aws(aws, built, registry_host, sent, image):
    built("one")
    pushed = registry.push(aws, image, registry_host, Silent())
    assert pushed.uri.startswith(f"{registry_host}/{image.repository}@sha256:")
    assert sent == []


@pytest.mark.docker
def test_what_was_pushed_last_is_pulled_as_cache(ecr, canned, built, push, image):
    built("one")
    uri = push().uri
    old = {"imageDigest": "sha256:" + "0" * 64, "imagePushedAt": datetime(2020, 1, 1, tzinfo=UTC)}
    new = {"imageDigest": uri.partition("@")[2], "imagePushedAt": datetime(2021, 1, 1, tzinfo=UTC)}
    canned("DescribeImages", {"imageDetails": [new, old]}, service="ecr")
    assert registry.pull_newest(fresh(ecr), image, None) == uri


@pytest.mark.docker
def test_a_cache_that_cannot_be_pulled_is_a_warning(ecr, canned, caplog, image):
    gone = {"imageDigest": "sha256:" + "0" * 64, "imagePushedAt": datetime(2020, 1, 1, tzinfo=UTC)}
    canned("DescribeImages", {"imageDetails": [gone]}, service="ecr")
    assert registry.pull_newest(fresh(ecr), image, None) is None
    assert "cannot be pulled, so the build starts afresh" in caplog.text


def test_without_a_previous_push_there_is_no_cache(aws, image):
    assert registry.pull_newest(aws, image, None) is None
    assert registry.pull_newest(aws, image, "elsewhere:5000") is None
    registry.ensure_repository(aws, image)
    assert registry.pull_newest(aws, image, None) is None


def test_an_error_event_of_the_engine_is_a_failure():
    with pytest.raises(JobFailed, match="push x failed: denied"):
        registry.watch_push(iter([{"error": "denied\n"}]), "push x", Silent())


def test_the_total_of_a_push_grows_as_its_layers_are_announced(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr("launcher.console.PLAIN_INTERVAL_SECONDS", 0)
    layer = {"status": "Pushing", "id": "a", "progressDetail": {"current": 500, "total": 1000}}
    other = {"status": "Pushing", "id": "b", "progressDetail": {"current": 500, "total": 1000}}
    rest = {**other, "progressDetail": {"current": 1512, "total": 1000}}  # the engine counts tar's padding, too
    assert registry.watch_push(iter([layer, other, rest]), "push x", Lines()) == 2012
    assert [record.getMessage().strip() for record in caplog.records] == ["push x 50%", "push x 50%", "push x 100%"]


def test_another_refusal_than_a_missing_repository_stands(aws, canned, image):
    error = {"Error": {"Code": "AccessDeniedException", "Message": "no"}}
    canned("DescribeRepositories", error, service="ecr")
    with pytest.raises(AwsRefused, match="AccessDeniedException"):
        registry.ensure_repository(aws, image)


def test_a_manifest_of_another_kind_is_refused(monkeypatch, image):
    monkeypatch.setattr(registry, "_manifest", lambda *_: ("application/vnd.v1+json", "sha256:1", {}))
    with pytest.raises(JobFailed, match="has a manifest of type 'application/vnd.v1"):
        registry.inspect_manifest(registry.Login("", "", ""), "r/x", "1")


def fresh(aws):
    """The same session with new clients: handlers registered since are only on those."""
    return Aws(aws.region, aws.session)


def registry_push(aws, image):
    return registry.push(aws, image, None, Silent())


def inspect(aws, host, image, tag):
    return registry.inspect_manifest(registry.log_in(aws), f"{host}/{image.repository}", tag)


def media_type():
    return registry.DOCKER_MANIFEST


def manifest_size(host, image, pushed):
    request = urllib.request.Request(f"http://{host}/v2/{image.repository}/manifests/{pushed.tag}")
    request.add_header("Accept", media_type())
    with urllib.request.urlopen(request) as reply:
        return len(reply.read())


def put_manifest(host, image, tag, manifest):
    url = f"http://{host}/v2/{image.repository}/manifests/{tag}"
    request = urllib.request.Request(
        url, json.dumps(manifest).encode(), {"Content-Type": manifest["mediaType"]}, method="PUT"
    )
    with urllib.request.urlopen(request):
        pass

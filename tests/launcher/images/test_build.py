"""Building images with the engine's API, or with the docker client and BuildKit."""

import io
import json
import logging
import os
import tarfile
from types import SimpleNamespace

import pytest

from launcher.config.images import Images, ServingImage, TrainingImage
from launcher.errors import ConfigError, JobFailed
from launcher.images import build as images


def test_the_dockerfiles_arguments_are_the_base_image_and_ones_own():
    image = TrainingImage(base_image="debian:12", build_args={"TORCH": "2.14"})
    assert images.build_arguments(image) == {"BASE_IMAGE": "debian:12", "TORCH": "2.14"}


def test_the_docker_client_is_told_everything(tmp_path):
    argv = images.build_argv(ServingImage(tag="1", base_image="debian:12"), tmp_path, Images(network="host"))
    assert argv[:4] == ["docker", "build", "--platform", "linux/amd64"]
    assert argv[argv.index("--file") + 1] == str(tmp_path / "Dockerfile.serve")
    assert argv[argv.index("--tag") + 1] == "slipway-serve:1"
    assert argv[argv.index("--build-arg") + 1] == "BASE_IMAGE=debian:12"
    assert argv[argv.index("--network") + 1] == "host"


def test_buildkit_makes_no_attestation_as_sagemaker_refuses_it():
    environment = images.buildkit_environment({"PATH": "/bin"})
    assert environment == {"PATH": "/bin", "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


def test_a_missing_dockerfile_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Dockerfile\.train does not exist"):
        images.build(TrainingImage(), tmp_path)


def test_without_an_engine_the_error_says_so(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no Docker engine answers"):
        images.engine()


TINY = f"slipway-test-tiny-{os.getpid()}"  # tests of another checkout may use the same engine


@pytest.fixture
def tiny_directory(tmp_path):
    """A Dockerfile of one file and nothing else."""
    (tmp_path / "Dockerfile.train").write_text(
        'FROM scratch\nARG BASE_IMAGE\nLABEL base=$BASE_IMAGE\nCOPY one /\nCMD ["train"]\n'
    )
    (tmp_path / "one").write_text("1")
    return tmp_path


@pytest.fixture
def tiny(tiny_directory):
    """What is built from it, and removed afterwards."""
    yield TrainingImage(repository=TINY, tag="1", base_image="none"), tiny_directory
    images.engine().images.remove(f"{TINY}:1", force=True)


@pytest.mark.docker
def test_the_engine_builds_an_image(tiny, caplog):
    image, directory = tiny
    with caplog.at_level(logging.INFO, "launcher"):
        identity = images.build(image, directory)
    found = images.engine().images.get(f"{TINY}:1")
    assert found.id == identity
    assert found.labels == {"base": "none"}
    assert "COPY one" in caplog.text


@pytest.mark.docker
def test_an_image_for_another_processor_comes_out_right_or_not_at_all(image_names, tiny_directory):
    image = TrainingImage(repository=image_names("arm"), tag="1", platform="linux/arm64")
    refusal = ""
    try:
        images.build(image, tiny_directory)
    except JobFailed as error:  # of an engine whose builder knows its own processor only
        refusal = str(error)
    if refusal:
        assert "wanted linux/arm64" in refusal
        assert refusal.endswith("images.buildkit: true may build it")
    else:
        assert images.engine().images.get(images.local_reference(image)).attrs["Architecture"] == "arm64"


BASE_IMAGE = os.environ.get("SLIPWAY_BASE_IMAGE", "slipway-base:bookworm")
CACHE_MOUNT = f"""FROM {BASE_IMAGE}
COPY one /
RUN --mount=type=cache,id={TINY},target=/cache cat /one >> /cache/seen && cp /cache/seen /seen
"""


@pytest.fixture
def buildkit():
    """BuildKit, and a base image on this machine: nothing is pulled."""
    if images.buildkit_client(os.environ) is None:
        pytest.skip("no docker client on PATH can use BuildKit")
    if not any(BASE_IMAGE in found.tags for found in images.engine().images.list()):
        pytest.skip(f"no image {BASE_IMAGE}")
    return Images(buildkit=True)


@pytest.mark.docker
def test_buildkit_builds_what_the_engines_api_cannot(tiny, buildkit):
    image, directory = tiny
    (directory / "Dockerfile.train").write_text(CACHE_MOUNT)
    with pytest.raises(JobFailed, match="--mount option requires BuildKit"):
        images.build(image, directory)
    identity = images.build(image, directory, buildkit)
    client = images.engine()
    assert client.images.get(f"{TINY}:1").id == identity
    container = client.containers.run(image=identity, command=["cat", "/seen"], detach=True)
    try:  # `run(…, remove=True)` may remove the log before it has read it
        assert container.wait(timeout=60)["StatusCode"] == 0
        assert container.logs().startswith(b"1")
    finally:
        container.remove(force=True)


@pytest.mark.docker
def test_buildkit_notes_its_cache_in_the_image_and_builds_from_it(tiny, buildkit):
    image, directory = tiny
    (directory / "Dockerfile.train").write_text(CACHE_MOUNT)
    identity = images.build(image, directory, buildkit)
    archive = io.BytesIO(b"".join(images.engine().images.get(identity).save()))
    with tarfile.open(fileobj=archive) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))
        assert "moby.buildkit.cache.v0" in json.load(tar.extractfile(manifest["Config"]))
    assert images.build(image, directory, buildkit, cache=f"{TINY}:1") == identity


def docker_client(directory, script):
    directory.mkdir()
    (directory / "docker").write_text(f"#!/bin/sh\n{script}\n")
    (directory / "docker").chmod(0o755)
    return str(directory)


@pytest.mark.parametrize(
    ("version", "chosen"), [("Docker version 20.10.24+dfsg1, build 1", True), ("Docker version 28.2.2, build 2", False)]
)
def test_a_client_without_buildx_must_be_an_old_one(tmp_path, version, chosen):
    old = docker_client(tmp_path / "old", f'[ "$1" = --version ] && echo "{version}"')
    assert (images.buildkit_client({"PATH": old}) is not None) == chosen


def test_the_first_client_on_path_that_can_is_taken(tmp_path):
    bare = docker_client(tmp_path / "bare", "exit 1")
    able = docker_client(tmp_path / "able", '[ "$1" = buildx ]')
    assert images.buildkit_client({"PATH": f"{bare}::{tmp_path / 'none'}:{able}"}) == f"{able}/docker"


def test_without_such_a_client_the_error_says_what_to_install(tiny_directory, monkeypatch):
    monkeypatch.setenv("PATH", str(tiny_directory))
    monkeypatch.setattr(images, "engine", lambda: SimpleNamespace(info=lambda: {"DockerRootDir": "/nowhere"}))
    with pytest.raises(ConfigError, match="install the docker-buildx plugin, or set images.buildkit: false"):
        images.build(TrainingImage(), tiny_directory, Images(buildkit=True))


def test_a_buildkit_build_notes_its_cache_and_uses_one(tmp_path):
    argv = images.build_argv(TrainingImage(), tmp_path, Images(buildkit=True), cache="repository@sha256:1")
    assert argv[argv.index("--cache-from") + 1] == "repository@sha256:1"
    assert "BUILDKIT_INLINE_CACHE=1" in argv


@pytest.mark.docker
@pytest.mark.parametrize("reference", ["slipway-train:local", "slipway-serve:local"])
def test_of_our_images_a_change_of_code_pushes_less_than_a_megabyte(reference):
    """The layers above the last package are all that a push sends after a change of code, compressed."""
    client = images.engine()
    if not any(reference in found.tags for found in client.images.list()):
        pytest.skip(f"no image {reference}: make images")
    newest_first = client.api.history(reference)
    packages = next(index for index, layer in enumerate(newest_first) if "pip install" in layer["CreatedBy"])
    layers = sum(layer["Size"] for layer in newest_first[:packages])
    code = "/opt/slipway/container"
    script = f"du -sb --exclude=__pycache__ {code} | cut -f1; tar -c {code} 2>/dev/null | gzip | wc -c"
    files, pushed = map(int, client.containers.run(reference, ["-c", script], entrypoint="sh", remove=True).split())
    assert files < layers < 10 * files, "there are layers of code, and of nothing else"
    assert pushed < 1_000_000


@pytest.mark.docker
def test_a_failing_step_is_told(tiny):
    image, directory = tiny
    images.build(image, directory)
    (directory / "one").unlink()
    with pytest.raises(JobFailed, match=f"the build of {TINY}:1 failed: .*COPY"):
        images.build(image, directory)


def test_a_disk_that_would_fill_up_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"images\.min_free_gb is 1e\+09; remove what is unused"):
        images.guard_disk(tmp_path, 1e9)
    images.guard_disk(tmp_path / "of another machine", 1e9)

"""Building images with the engine's API, or with the docker client and BuildKit."""

import logging
from types import SimpleNamespace

import pytest

from launcher.config import Images, ServingImage, TrainingImage
from launcher.errors import ConfigError, JobFailed
from launcher.images import build as images


def test_the_dockerfiles_arguments_are_the_base_image_and_ones_own():
    image = TrainingImage(base_image="debian:12", build_args={"TORCH": "2.14"})
    assert images.build_arguments(image) == {"BASE_IMAGE": "debian:12", "TORCH": "2.14"}


def test_the_docker_client_is_told_everything(tmp_path):
    argv = images.build_argv(ServingImage(tag="1", base_image="debian:12"), tmp_path, "host")
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
    yield TrainingImage(repository="slipway-test-tiny", tag="1", base_image="none"), tiny_directory
    images.engine().images.remove("slipway-test-tiny:1", force=True)


@pytest.mark.docker
def test_the_engine_builds_an_image(tiny, caplog):
    image, directory = tiny
    with caplog.at_level(logging.INFO, "launcher"):
        identity = images.build(image, directory)
    found = images.engine().images.get("slipway-test-tiny:1")
    assert found.id == identity
    assert found.labels == {"base": "none"}
    assert "COPY one" in caplog.text


@pytest.mark.docker
def test_buildkit_builds_the_same_or_says_what_it_lacks(tiny):
    image, directory = tiny
    images.build(image, directory)
    if not images.has_buildx():
        with pytest.raises(ConfigError, match="install the docker-buildx plugin, or set images.buildkit: false"):
            images.build(image, directory, Images(buildkit=True))
        return
    identity = images.build(image, directory, Images(buildkit=True))
    assert images.engine().images.get("slipway-test-tiny:1").id == identity


def test_the_docker_client_that_fails_is_told(tiny_directory, monkeypatch):
    (tiny_directory / "docker").write_text("#!/bin/sh\n[ $1 = buildx ]\n")
    (tiny_directory / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tiny_directory}:/bin:/usr/bin")
    monkeypatch.setattr(images, "engine", lambda: SimpleNamespace(info=lambda: {"DockerRootDir": "/nowhere"}))
    with pytest.raises(JobFailed, match="the step above says why"):
        images.build(TrainingImage(), tiny_directory, Images(buildkit=True))


@pytest.mark.docker
def test_a_failing_step_is_told(tiny):
    image, directory = tiny
    images.build(image, directory)
    (directory / "one").unlink()
    with pytest.raises(JobFailed, match="the build of slipway-test-tiny:1 failed: .*COPY"):
        images.build(image, directory)


def test_a_disk_that_would_fill_up_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"images\.min_free_gb is 1e\+09; remove what is unused"):
        images.guard_disk(tmp_path, 1e9)
    images.guard_disk(tmp_path / "of another machine", 1e9)

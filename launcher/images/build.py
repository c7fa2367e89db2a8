"""Builds the images with a Docker engine."""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.config.images import Image, Images
from launcher.errors import ConfigError, JobFailed

logger = logging.getLogger(__name__)

INLINE_CACHE = "BUILDKIT_INLINE_CACHE"  # build argument with which BuildKit notes its cache in the image
FIRST_WITH_BUILDKIT, NEEDS_BUILDX = 18, 23  # major versions of the docker client


def local_reference(image: Image) -> str:
    """The name an image gets on this machine; one that names a digest is what a registry gave it."""
    return image.uri if image.uri and "@" not in image.uri else f"{image.repository}:{image.tag}"


def build_arguments(image: Image) -> dict[str, str]:
    """Build arguments of the Dockerfile."""
    base = {"BASE_IMAGE": image.base_image} if image.base_image else {}
    return {**base, **image.build_args}


def build_argv(image: Image, directory: Path, options: Images, cache: str | None = None) -> list[str]:
    """The docker client's command for a BuildKit build; its layers can be another build's cache (`--cache-from`)."""
    arguments = {**build_arguments(image), **({INLINE_CACHE: "1"} if options.buildkit else {})}
    given = [item for key, value in arguments.items() for item in ("--build-arg", f"{key}={value}")]
    return [
        "docker",
        "build",
        "--platform",
        image.platform,
        "--file",
        str(directory / image.dockerfile),
        "--tag",
        local_reference(image),
        *given,
        *(["--network", options.network] if options.network else []),
        *(["--cache-from", cache] if cache else []),
        str(directory / image.context),
    ]


def build(image: Image, directory: Path, options: Images | None = None, cache: str | None = None) -> str:
    """Build one image and tag it.

    Args:
        image: what to build.
        directory: where its relative paths start.
        options: network, BuildKit and the disk to leave free.
        cache: reference of an image on this machine whose layers may be used.

    Returns:
        The image's id, `sha256:…`.

    Raises:
        ConfigError: the Dockerfile is missing, or no engine answers.
        JobFailed: a step failed; its output has been shown.
    """
    dockerfile = directory / image.dockerfile
    if not dockerfile.is_file():
        raise ConfigError(f"{dockerfile} does not exist; set images.….dockerfile, or build in the directory it lies in")
    options = options or Images()
    client = engine()
    guard_disk(Path(client.info()["DockerRootDir"]), options.min_free_gb)
    if options.buildkit:
        build_with_buildkit(image, directory, options, cache)
        return client.images.get(local_reference(image)).id
    _show_build(
        image,
        client.api.build(
            path=str(directory / image.context),
            dockerfile=str(dockerfile.resolve()),
            tag=local_reference(image),
            platform=image.platform,  # else the engine's own, which on many a laptop is arm64
            buildargs=build_arguments(image),
            network_mode=options.network,
            cache_from=[cache] if cache else [],
            rm=True,
            forcerm=True,
            decode=True,
        ),
    )
    return client.images.get(local_reference(image)).id


def guard_disk(root: Path, least_gb: float) -> None:
    """Refuse to begin what would fill the disk.

    Raises:
        ConfigError: less is free than `images.min_free_gb`.
    """
    if not root.exists():
        return  # the engine runs on another machine
    free = shutil.disk_usage(root).free / 1e9
    if free < least_gb:
        raise ConfigError(
            f"{free:.1f} GB are free in {root} and images.min_free_gb is {least_gb:g}; "
            "remove what is unused with `docker system prune`"
        )


def build_with_buildkit(image: Image, directory: Path, options: Images, cache: str | None) -> None:
    """Build with the docker client, which shows its progress itself.

    Raises:
        ConfigError: no docker client on PATH can use BuildKit.
        JobFailed: a step failed; its output has been shown.
    """
    docker = buildkit_client(os.environ)
    if docker is None:
        raise ConfigError(
            "no docker client on PATH has buildx, which BuildKit needs; "
            "install the docker-buildx plugin, or set images.buildkit: false"
        )
    argv = [docker, *build_argv(image, directory, options, cache)[1:]]
    if subprocess.run(argv, env=buildkit_environment(os.environ), check=False).returncode:
        raise JobFailed(f"the build of {local_reference(image)} failed; the step above says why")


def buildkit_client(environ: Mapping[str, str]) -> str | None:
    """The first docker client on PATH that can use BuildKit: with the buildx plugin, or old enough to need none."""
    for folder in environ.get("PATH", "").split(os.pathsep):
        docker = shutil.which("docker", path=folder) if folder else None
        if docker and (_runs(docker, "buildx", "version") or _is_older_than_buildx(docker)):
            return docker
    return None


def _runs(*argv: str) -> bool:
    return not subprocess.run(argv, capture_output=True, check=False).returncode


def _is_older_than_buildx(docker: str) -> bool:
    """Clients before 23 speak to the engine's BuildKit themselves."""
    told = subprocess.run([docker, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"version (\d+)\.", told)
    return version is not None and FIRST_WITH_BUILDKIT <= int(version[1]) < NEEDS_BUILDX


def buildkit_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with BuildKit on and its attestations off: SageMaker refuses an index with one."""
    return {**environ, "DOCKER_BUILDKIT": "1", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}


def engine() -> Any:
    """A client of the Docker engine.

    Raises:
        ConfigError: none answers.
    """
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=600)
        client.ping()
    except DockerException as error:
        raise ConfigError(f"no Docker engine answers ({error}); start Docker, or build in CodeBuild") from error
    return client


def _show_build(image: Image, events: Iterator[dict[str, Any]]) -> None:
    for event in events:
        if "error" in event:
            text = event["error"].strip()
            hint = f"; for {image.platform} here, images.buildkit: true may build it" if "platform" in text else ""
            raise JobFailed(f"the build of {local_reference(image)} failed: {text}{hint}")
        text = event.get("stream", "").rstrip()
        if text:
            logger.info("   %s", text)

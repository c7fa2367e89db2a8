"""Builds the images with a Docker engine."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.config import Image, Images
from launcher.errors import ConfigError, JobFailed

logger = logging.getLogger(__name__)


def local_reference(image: Image) -> str:
    """The name an image gets on this machine; one that names a digest is what a registry gave it."""
    return image.uri if image.uri and "@" not in image.uri else f"{image.repository}:{image.tag}"


def build_arguments(image: Image) -> dict[str, str]:
    """Build arguments of the Dockerfile."""
    base = {"BASE_IMAGE": image.base_image} if image.base_image else {}
    return {**base, **image.build_args}


def build_argv(image: Image, directory: Path, network: str | None) -> list[str]:
    """The docker client's command for a BuildKit build.

    `--provenance=false` keeps the result one plain image: SageMaker refuses an index with an attestation. Clients
    before buildx do not know it, and make none; see `build`.
    """
    arguments = [item for key, value in build_arguments(image).items() for item in ("--build-arg", f"{key}={value}")]
    return [
        "docker",
        "build",
        "--platform",
        image.platform,
        "--file",
        str(directory / image.dockerfile),
        "--tag",
        local_reference(image),
        *arguments,
        *(["--network", network] if network else []),
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
        if not has_buildx():
            raise ConfigError(
                "the docker client has no buildx, which BuildKit needs; "
                "install the docker-buildx plugin, or set images.buildkit: false"
            )
        argv, environment = build_argv(image, directory, options.network), buildkit_environment(os.environ)
        if subprocess.run(argv, env=environment, check=False).returncode:
            raise JobFailed(f"the build of {local_reference(image)} failed; the step above says why")
        return client.images.get(local_reference(image)).id
    _show_build(
        image,
        client.api.build(
            path=str(directory / image.context),
            dockerfile=str(dockerfile.resolve()),
            tag=local_reference(image),
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


def has_buildx() -> bool:
    """Whether the docker client can build with BuildKit."""
    return not subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode


def buildkit_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment with BuildKit on and its attestations off."""
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
            raise JobFailed(f"the build of {local_reference(image)} failed: {event['error'].strip()}")
        text = event.get("stream", "").rstrip()
        if text:
            logger.info("   %s", text)

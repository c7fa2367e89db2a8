"""Pushes an image to ECR: the repository is made when missing, and what SageMaker would refuse is found at once."""

import base64
import json
import logging
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

from botocore.exceptions import ClientError

from launcher.aws import Aws
from launcher.config.images import Image
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.images import build as images

if TYPE_CHECKING:
    from launcher.data import Progress

logger = logging.getLogger(__name__)

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEXES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
ATTEMPTS = 3
RETRY_SECONDS = 5.0
TAG_DIGITS = 12  # of the image's id: as many as `docker images` shows
MANIFEST_SECONDS = 30


@dataclass(frozen=True)
class Login:
    """A registry's user and password; ECR's is good for twelve hours."""

    user: str
    password: str
    endpoint: str
    """`https://…` of the registry."""


@dataclass(frozen=True)
class Pushed:
    """An image in its registry."""

    uri: str
    """`registry/repository@sha256:…`: what a job should name, as nothing can change it."""
    tag: str
    size_bytes: int
    """Of all layers, compressed."""
    uploaded_bytes: int
    """Of the layers that were not there yet, as the engine counts them: uncompressed."""


def push(
    aws: Aws, image: Image, registry: str | None, progress: "Progress", retry_seconds: float = RETRY_SECONDS
) -> Pushed:
    """Push one built image under a tag made of its content.

    Args:
        aws: the account whose ECR it goes to.
        image: what to push.
        registry: host of another registry, to which the docker client is logged in already; None means ECR.
        progress: told about the bytes.
        retry_seconds: between two attempts.

    Raises:
        ConfigError: it has not been built, or no engine answers.
        AwsRefused: ECR said no.
        JobFailed: the push failed three times, or what arrived is nothing SageMaker runs.
    """
    client = images.engine()
    local = built(client, image)
    repository = f"{registry}/{image.repository}" if registry else ensure_repository(aws, image)
    tag = local.id.removeprefix("sha256:")[:TAG_DIGITS]
    local.tag(repository, tag=tag)
    for attempt in range(1, ATTEMPTS + 1):
        login = (
            anonymous(registry) if registry else log_in(aws)
        )  # right before: a token from the start of a long build may have run out
        try:
            # an immutable tag takes no second push, not even of the same image; ours are made of the content
            uploaded = 0 if _is_there(login, repository, tag) else _send(client, repository, tag, login, progress)
            break
        except JobFailed as error:
            if attempt == ATTEMPTS:
                raise
            logger.warning("%s; trying again in %.0f s", error, retry_seconds)
            time.sleep(retry_seconds)
    digest, size = inspect_manifest(login, repository, tag)
    return Pushed(f"{repository}@{digest}", tag, size, uploaded)


def built(client: Any, image: Image) -> Any:
    """The engine's image.

    Raises:
        ConfigError: it is not there.
    """
    from docker.errors import ImageNotFound

    reference = images.local_reference(image)
    try:
        return client.images.get(reference)
    except ImageNotFound as error:
        raise ConfigError(
            f"there is no image {reference} on this machine; run `python -m launcher build` first"
        ) from error


def ensure_repository(aws: Aws, image: Image) -> str:
    """The repository's URI; it is created with scan on push, immutable tags and a lifecycle policy when missing."""
    name = image.repository
    try:
        found = aws.call("ecr", "DescribeRepositories", repositoryNames=[name])
        return found["repositories"][0]["repositoryUri"]
    except AwsRefused as error:
        cause = error.__cause__
        code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""
        if code != "RepositoryNotFoundException":
            raise
    created = aws.call(
        "ecr",
        "CreateRepository",
        repositoryName=name,
        imageScanningConfiguration={"scanOnPush": True},
        imageTagMutability="IMMUTABLE",
    )
    policy = json.dumps(lifecycle_policy(image.keep))
    aws.call("ecr", "PutLifecyclePolicy", repositoryName=name, lifecyclePolicyText=policy)
    logger.info("-> created the repository %s", name)
    return created["repository"]["repositoryUri"]


def pull_newest(aws: Aws, image: Image, registry: str | None) -> str | None:
    """Pull what was pushed last, so that a build on a fresh machine finds its layers there.

    Returns:
        Its reference, or None where nothing has been pushed.
    """
    from docker.errors import DockerException

    if registry:
        return None  # another registry does not tell what is newest
    try:
        pages = aws.client("ecr").get_paginator("describe_images").paginate(repositoryName=image.repository)
        found = [item for page in pages for item in page["imageDetails"]]
    except ClientError:
        return None  # no repository yet, or none of the caller's business
    if not found:
        return None
    newest = max(found, key=lambda item: item["imagePushedAt"])
    login = log_in(aws)
    reference = f"{ensure_repository(aws, image)}@{newest['imageDigest']}"
    try:
        images.engine().images.pull(reference, auth_config={"username": login.user, "password": login.password})
    except DockerException as error:
        logger.warning("the previous image cannot be pulled, so the build starts afresh: %s", error)
        return None
    logger.info("-> pulled %s as cache", reference)
    return reference


def lifecycle_policy(keep: int) -> dict[str, Any]:
    """ECR's rules: the newest images stay, the others expire."""
    selection = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": keep}
    rule = {
        "rulePriority": 1,
        "description": f"keep the newest {keep} images",
        "selection": selection,
        "action": {"type": "expire"},
    }
    return {"rules": [rule]}


def log_in(aws: Aws) -> Login:
    """A fresh token of the account's registry."""
    (data,) = aws.call("ecr", "GetAuthorizationToken")["authorizationData"]
    user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return Login(user, password, data["proxyEndpoint"])


def anonymous(registry: str) -> Login:
    """No login of ours: the docker client has its own; a loopback registry needs neither that nor TLS."""
    plain = registry.partition(":")[0] in {"127.0.0.1", "localhost"}
    return Login("", "", f"{'http' if plain else 'https'}://{registry}")


def _send(client: Any, repository: str, tag: str, login: Login, progress: "Progress") -> int:
    """One push.

    Returns:
        Bytes of the layers that were not there.
    """
    from docker.errors import DockerException

    credentials = {"username": login.user, "password": login.password} if login.user else None
    try:
        events = client.images.push(repository, tag=tag, auth_config=credentials, stream=True, decode=True)
        return watch_push(events, f"push {repository}:{tag}", progress)
    except (DockerException, OSError) as error:
        raise JobFailed(f"the push of {repository}:{tag} failed: {error}") from error


def watch_push(events: Iterator[dict[str, Any]], title: str, progress: "Progress") -> int:
    """Show the engine's account of a push; the total grows as layers announce themselves.

    Returns:
        Bytes of the layers that were sent.

    Raises:
        JobFailed: the engine or the registry reported an error.
    """
    done: dict[str, int] = {}
    progress.start(title, 0)
    try:
        for event in events:
            if "error" in event:
                raise JobFailed(f"{title} failed: {event['error'].strip()}")
            detail = event.get("progressDetail") or {}
            if event.get("status") == "Pushing" and "current" in detail:
                if event["id"] not in done:
                    progress.expect(detail.get("total", 0))
                before = done.get(event["id"], 0)
                done[event["id"]] = max(before, detail["current"])
                progress.advance(done[event["id"]] - before)
    finally:
        progress.finish()
    return sum(done.values())


def inspect_manifest(login: Login, repository: str, tag: str) -> tuple[str, int]:
    """What the registry holds under a tag.

    Returns:
        Its digest, and the compressed size of its layers in bytes.

    Raises:
        JobFailed: SageMaker would refuse it, or it cannot be read.
    """
    kind, digest, manifest = _manifest(login, repository.partition("/")[2], tag)
    if kind in INDEXES or "manifests" in manifest:
        raise JobFailed(
            f"{repository}:{tag} is an index of several images (attestations count); SageMaker accepts one image only. "
            "Build with images.buildkit: false, or with `docker build --provenance=false --sbom=false`"
        )
    if kind not in {DOCKER_MANIFEST, OCI_MANIFEST}:
        raise JobFailed(f"{repository}:{tag} has a manifest of type {kind!r}; SageMaker accepts {DOCKER_MANIFEST}")
    return digest, sum(layer["size"] for layer in manifest["layers"])


def _is_there(login: Login, repository: str, tag: str) -> bool:
    """Whether the registry has the tag; where it does not say, the push will."""
    try:
        _manifest(login, repository.partition("/")[2], tag)
    except JobFailed:
        return False
    return True


def _manifest(login: Login, repository: str, tag: str) -> tuple[str, str, dict[str, Any]]:
    """Media type, digest and manifest by the registry's own API (ECR's and any other's are the same)."""
    request = urllib.request.Request(f"{login.endpoint}/v2/{repository}/manifests/{tag}")
    if login.user:
        token = base64.b64encode(f"{login.user}:{login.password}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
    request.add_header("Accept", ", ".join((DOCKER_MANIFEST, OCI_MANIFEST, *sorted(INDEXES))))
    try:
        with urllib.request.urlopen(request, timeout=MANIFEST_SECONDS) as reply:
            headers = reply.headers
            return headers.get_content_type(), headers["Docker-Content-Digest"], json.loads(reply.read())
    except (URLError, OSError, ValueError) as error:
        raise JobFailed(f"the manifest of {repository}:{tag} cannot be read back: {error}") from error

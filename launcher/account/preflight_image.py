"""Whether SageMaker can pull and start the images: in ECR, in the region, one Docker v2 manifest, right processor."""

import json
import re
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.account.needs import ECR_IMAGE, values_of
from launcher.account.preflight_scene import Scene, error_code
from launcher.errors import AwsRefused
from launcher.findings import Finding
from launcher.jobs.common import image_uri
from launcher.jobs.hosts import family

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEXES = {
    "application/vnd.oci.image.index.v1+json": "an OCI index (several platforms, or one with an attestation)",
    "application/vnd.docker.distribution.manifest.list.v2+json": "a manifest list of several platforms",
}
PUSH = "python -m launcher build && python -m launcher push"
DOWNLOAD_SECONDS = 10
GRAVITON = re.compile(r"[a-z]+\d+g[dn]?")  # c6g, m7gd, c6gn: ARM; not g4dn


def check_images(scene: Scene) -> Iterator[Finding]:
    """Every image of the planned requests."""
    for image in values_of(scene.needs, "image"):
        match = ECR_IMAGE.fullmatch(image)
        if not match:
            fix = "push it to ECR: unset images.registry, then build and push"
            yield Finding("image", "fail", f"{image} does not lie in ECR, and SageMaker pulls from nowhere else", fix)
        elif match["region"] != scene.context.region:
            detail = f"{image} lies in {match['region']} and the job runs in {scene.context.region}"
            yield Finding("image", "fail", detail, f"push it to {scene.context.region}")
        else:
            yield _image(scene, image, match)


def _image(scene: Scene, uri: str, match: re.Match[str]) -> Finding:
    wanted = {"imageDigest": match["digest"]} if match["digest"] else {"imageTag": match["tag"] or "latest"}
    try:
        reply = scene.aws.call(
            "ecr",
            "BatchGetImage",
            registryId=match["account"],
            repositoryName=match["repository"],
            imageIds=[wanted],
            acceptedMediaTypes=[DOCKER_MANIFEST, OCI_MANIFEST, *INDEXES],
        )
    except AwsRefused as error:
        if error_code(error) != "RepositoryNotFoundException":
            raise
        return Finding(
            "image", "fail", f"{uri}: there is no repository {match['repository']}", "build and push the image"
        )
    if not reply["images"]:
        found = next(iter(wanted.values()))
        return Finding(
            "image", "fail", f"{uri}: the repository holds no {found}", "build and push the image, or correct its tag"
        )
    return _manifest(scene, uri, match, reply["images"][0])


def _manifest(scene: Scene, uri: str, match: re.Match[str], image: Mapping[str, Any]) -> Finding:
    manifest = json.loads(image["imageManifest"])
    media_type = image.get("imageManifestMediaType") or manifest.get("mediaType", "")
    if media_type in INDEXES or "manifests" in manifest:
        detail = f"{uri} is {INDEXES.get(media_type, 'an index')}; SageMaker accepts a single Docker v2 manifest"
        return Finding(
            "image", "fail", detail, "build it for one platform, without provenance: python -m launcher build"
        )
    if media_type != DOCKER_MANIFEST:
        detail = f"{uri} has the manifest type {media_type or 'unknown'}; SageMaker accepts {DOCKER_MANIFEST}"
        return Finding("image", "fail", detail, "push it with docker, not as OCI (buildx: oci-mediatypes=false)")
    gigabytes = sum(layer["size"] for layer in manifest["layers"]) / 1e9
    size = f"{gigabytes:.2f} GB compressed"
    built = _configuration(scene, match, manifest["config"]["digest"])
    if built is None:
        return Finding("image", "warn", f"{uri}: single Docker v2 manifest, {size}; its processor could not be read")
    return _platform(scene, uri, built, size)


def _platform(scene: Scene, uri: str, built: Mapping[str, Any], size: str) -> Finding:
    architecture = built.get("architecture", "unknown")
    needed = {_processor(instance_type): instance_type for instance_type in _instance_types(scene, uri)}
    wrong = {kind: instance_type for kind, instance_type in needed.items() if kind != architecture}
    if wrong or built.get("os", "linux") != "linux":
        kind, instance_type = next(iter(wrong.items()), ("amd64", "SageMaker"))
        detail = f"{uri} is built for {built.get('os', 'linux')}/{architecture} and {instance_type} runs linux/{kind}"
        return Finding("image", "fail", detail, f"set its platform to linux/{kind}, then build and push")
    return Finding("image", "ok", f"{uri}: single Docker v2 manifest, {architecture}, {size}")


def _instance_types(scene: Scene, uri: str) -> list[str]:
    """What the image will run on; the same image may train and serve."""
    config, types = scene.config, list[str]()
    trains = "train" in scene.kinds and uri == image_uri(config, "training", scene.context)
    if trains:
        groups = [group.instance_type for group in config.training.instance_groups]
        types += groups or config.training.instance_type
    if trains and uri != image_uri(config, "serving", scene.context):
        return types
    types += [config.transform.instance_type] if "transform" in scene.kinds else []
    if "deploy" in scene.kinds and not config.endpoint.serverless:
        types += [config.endpoint.instance_type]
        types += [variant.instance_type for variant in config.endpoint.variants if variant.instance_type]
    return types


def _processor(instance_type: str) -> str:
    return "arm64" if GRAVITON.fullmatch(family(instance_type)) else "amd64"


def _configuration(scene: Scene, match: re.Match[str], digest: str) -> dict[str, Any] | None:
    """The image's configuration blob; None where the caller may not have it or it cannot be fetched."""
    try:
        reply = scene.aws.call(
            "ecr",
            "GetDownloadUrlForLayer",
            registryId=match["account"],
            repositoryName=match["repository"],
            layerDigest=digest,
        )
        with urllib.request.urlopen(reply["downloadUrl"], timeout=DOWNLOAD_SECONDS) as answer:  # ECR's own https URL
            return json.load(answer)
    except (AwsRefused, OSError, ValueError):
        return None

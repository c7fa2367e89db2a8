"""`build --remote`: CodeBuild runs buildspec.yml; its log is followed here and its digests come back."""

import io
import json
import logging
import time
import zipfile
from collections.abc import Callable
from typing import Any

from botocore.exceptions import ClientError

from launcher.aws import Aws, refusals
from launcher.errors import AwsRefused, ConfigError, JobFailed
from launcher.jobs.api import split_s3_uri
from launcher.run import LogFollower, show_lines

logger = logging.getLogger(__name__)

ARTIFACT = "images.json"
POLL_SECONDS = 5.0
RUNNING = "IN_PROGRESS"


def start(aws: Aws, project: str | None) -> str:
    """Start a build.

    Returns:
        Its id.

    Raises:
        ConfigError: no CodeBuild project is configured.
    """
    if not project:
        raise ConfigError(
            "images.codebuild_project is not set; name a CodeBuild project whose source is this repository "
            "(privileged, at least 50 GB of disk)"
        )
    build = aws.call("codebuild", "StartBuild", projectName=project)["build"]
    logger.info("-> started the build %s", build["id"])
    return build["id"]


def follow(aws: Aws, build_id: str, sleep: Callable[[float], None] = time.sleep) -> dict[str, Any]:
    """Show the log until the build ends.

    Returns:
        Its last description.

    Raises:
        JobFailed: it did not succeed; the message names the phase.
    """
    follower: LogFollower | None = None
    while True:
        (build,) = aws.call("codebuild", "BatchGetBuilds", ids=[build_id])["builds"]
        log = build.get("logs", {})
        if follower is None and log.get("streamName"):
            follower = LogFollower(aws, log["groupName"], log["streamName"])
        if follower:
            show_lines(follower.read())
        if build["buildStatus"] == "SUCCEEDED":
            return build
        if build["buildStatus"] != RUNNING:
            raise JobFailed(f"the build {build_id} is {build['buildStatus']}{_failed_phase(build)}")
        sleep(POLL_SECONDS)


def _failed_phase(build: dict[str, Any]) -> str:
    for phase in build.get("phases", []):
        if phase.get("phaseStatus") not in {"SUCCEEDED", None}:
            words = "; ".join(context.get("message", "") for context in phase.get("contexts", []))
            return f" in the phase {phase['phaseType']}: {words}"
    return ""


def pushed_images(aws: Aws, build: dict[str, Any]) -> dict[str, Any]:
    """The digests the build has pushed: its artifact images.json, plain or in a zip file.

    Raises:
        ConfigError: the CodeBuild project keeps no artifact in S3.
        JobFailed: the artifact is not there.
    """
    location = build.get("artifacts", {}).get("location", "")
    if not location:
        raise ConfigError("the CodeBuild project keeps no artifacts; give it an S3 bucket for them")
    uri = f"s3://{location.removeprefix('arn:aws:s3:::')}"
    for candidate in (uri, f"{uri.rstrip('/')}/{ARTIFACT}"):
        content = _object(aws, candidate)
        if content is not None:
            return json.loads(_unzipped(content))
    raise JobFailed(f"there is no {ARTIFACT} at {uri}; the build's log says why")


def _object(aws: Aws, uri: str) -> bytes | None:
    bucket, key = split_s3_uri(uri)
    try:
        with refusals("GetObject"):
            return aws.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    except AwsRefused as error:
        cause = error.__cause__
        if isinstance(cause, ClientError) and cause.response["Error"]["Code"] in {"NoSuchKey", "404"}:
            return None
        raise


def _unzipped(content: bytes) -> bytes:
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(ARTIFACT)

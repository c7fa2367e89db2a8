"""One request to AWS as a plain value: what `--dry-run` prints, the validator checks and `aws.py` sends."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

NAME_LIMIT = 63  # TrainingJobName, ModelName, EndpointName and their kin


@dataclass(frozen=True)
class ApiCall:
    """What `aws <service> <operation> --cli-input-json <request>` would send."""

    service: str
    """botocore's name of it, such as `sagemaker`."""
    operation: str
    """In the API's own spelling, such as `CreateTrainingJob`."""
    request: dict[str, Any]
    """The body, in the API's own spelling."""


@dataclass(frozen=True)
class Upload:
    """A directory or file of this machine, and its place in S3."""

    source: Path
    uri: str
    without: tuple[Path, ...] = ()
    """Directories below the source that stay here."""


@dataclass(frozen=True)
class JobContext:
    """What a request needs and the configuration does not say."""

    job_name: str
    account: str
    region: str
    bucket: str
    role_arn: str


def unique_name(prefix: str, now: datetime, suffix: str = "") -> str:
    """A job name made of the project's name and the time, cut to what SageMaker takes."""
    ending = f"{now:%Y%m%d-%H%M%S}" + (f"-{suffix}" if suffix else "")
    return f"{prefix[: NAME_LIMIT - len(ending) - 1].rstrip('-')}-{ending}"


def content_name(prefix: str, body: Mapping[str, Any]) -> str:
    """A name that changes exactly when the body does, so that creating it twice is creating it once."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:10]
    return f"{prefix[: NAME_LIMIT - len(digest) - 1].rstrip('-')}-{digest}"


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags in the API's form."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def without_none(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without members that are None: unset and null are not the same to the API."""
    return {key: value for key, value in body.items() if value is not None}


def s3_join(*parts: str) -> str:
    """An S3 URI of its parts, with exactly one slash between them."""
    first, *rest = parts
    return "/".join([first.rstrip("/"), *(part.strip("/") for part in rest)])


def split_s3_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Raises:
        ValueError: the text is no S3 URI.
    """
    match = re.fullmatch(r"s3://([^/]+)(?:/(.*))?", uri)
    if not match:
        raise ValueError(f"{uri!r} is not an S3 URI such as 's3://bucket/folder'")
    return match[1], match[2] or ""

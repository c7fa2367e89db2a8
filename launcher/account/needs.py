"""What the configured requests use in an account: prefixes, images, keys. Policies, prices and checks start here."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.config import Config
from launcher.jobs import endpoint, training, transform
from launcher.jobs.api import ApiCall, JobContext
from launcher.jobs.common import model_data_uri
from launcher.jobs.model import ServedModel

ECR_IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/"
    r"(?P<repository>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


def planned_calls(config: Config, context: JobContext, kinds: Iterable[str]) -> list[ApiCall]:
    """The requests the configuration leads to; a job or model not known yet has the context's job name.

    A transform job is planned only where it has an input.

    Raises:
        ConfigError: something a request needs is not configured.
    """
    calls: list[ApiCall] = []
    if "train" in kinds:
        calls += training.calls(config, context)
    if "transform" in kinds and config.transform.input:
        uri = model_data_uri(config, context, config.transform.model or context.job_name)
        calls += transform.calls(config, context, ServedModel(uri))
    if "deploy" in kinds:
        models = {
            name: ServedModel(model_data_uri(config, context, model or context.job_name))
            for name, model in endpoint.models_of(config.endpoint).items()
        }
        calls += endpoint.calls(config, context, models)
    return calls


@dataclass(frozen=True)
class Need:
    """Something in a request that IAM has a word for."""

    use: Literal["read", "write", "checkpoint", "image", "volume_key", "data_key", "topic", "file_system"]
    value: str


def needs_of(call: ApiCall) -> Iterator[Need]:
    """What a request names that somebody must be allowed to use."""
    for path, value in _leaves(call.request, ()):
        need = _need(path, value)
        if need:
            yield need


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, path)
    elif isinstance(value, str):
        yield path, value


def _need(path: tuple[str, ...], value: str) -> Need | None:
    member, parents = path[-1], path[:-1]
    if {"Environment", "HyperParameters"} & set(parents):
        return Need("read", value) if value.startswith("s3://") else None
    if "CheckpointConfig" in parents:
        return Need("checkpoint", value) if member == "S3Uri" else None
    if member == "KmsKeyId":
        return Need("volume_key" if path == ("KmsKeyId",) else "data_key", value)
    uses: dict[str, Any] = {
        "S3Uri": "read",
        "ModelDataUrl": "read",
        "S3OutputPath": "write",
        "S3FailurePath": "write",
        "DestinationS3Uri": "write",
        "TrainingImage": "image",
        "Image": "image",
        "VolumeKmsKeyId": "volume_key",
        "SuccessTopic": "topic",
        "ErrorTopic": "topic",
        "FileSystemId": "file_system",
    }
    return Need(uses[member], value) if member in uses else None


def values_of(needs: Iterable[Need], *uses: str) -> tuple[str, ...]:
    """The values of some uses, each once."""
    return tuple(dict.fromkeys(need.value for need in needs if need.use in uses))

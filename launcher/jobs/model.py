"""CreateModel: an archive, the image that serves it, and its variables."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from launcher.config import Config
from launcher.jobs.api import ApiCall, JobContext, content_name, tag_list
from launcher.jobs.common import image_uri, tags, vpc_config
from launcher.jobs.training import prune


@dataclass(frozen=True)
class Measured:
    """How long a model took on this machine, once."""

    load_seconds: float
    """From the start of the container to the first 200 on /ping."""
    unpack_seconds: float
    origin: str
    """What measured it, and when: `deploy --probe, 2026-11-21`."""


@dataclass(frozen=True)
class ServedModel:
    """A model archive an endpoint or batch job serves."""

    uri: str
    size_bytes: int | None = None
    """Length of the archive, where it is known."""
    etag: str = ""
    """The same archive has the same; empty where it is not known."""
    measured: Measured | None = None
    """How long it took on this machine, where somebody has looked."""


def together(models: Iterable[ServedModel]) -> ServedModel:
    """What several containers of one instance load, one after the other at worst; it lies nowhere itself."""
    models = list(models)
    sizes = [model.size_bytes for model in models if model.size_bytes is not None]
    known = [model.measured for model in models if model.measured]
    measured = (
        Measured(sum(item.load_seconds for item in known), sum(item.unpack_seconds for item in known), known[0].origin)
        if known and len(known) == len(models)
        else None
    )
    return ServedModel("", sum(sizes) if sizes else None, measured=measured)


def model_call(
    config: Config, context: JobContext, model: ServedModel, environment: dict[str, str] | None = None
) -> ApiCall:
    """CreateModel with a name made of its content: the same model is created once.

    Args:
        config: the project's.
        context: account and role.
        model: where its archive lies.
        environment: variables beside those of `endpoint.environment`.
    """
    container = _container(config, context, model)
    if environment:
        container["Environment"] = {**config.endpoint.environment, **environment}
    return _call(config, context, {"PrimaryContainer": container})


def containers_call(config: Config, context: JobContext, models: dict[str, ServedModel]) -> ApiCall:
    """CreateModel of several containers.

    Args:
        config: the project's.
        context: account and role.
        models: container name -> its model; containers without one are left out.
    """
    endpoint = config.endpoint
    containers = [
        _container(config, context, models.get(item.name))
        | prune({"ContainerHostname": item.name, "Image": item.image})
        | ({"Environment": {**endpoint.environment, **item.environment}} if item.environment else {})
        for item in endpoint.containers
    ]
    execution = {"Mode": endpoint.container_mode}
    return _call(config, context, {"Containers": containers, "InferenceExecutionConfig": execution})


def _container(config: Config, context: JobContext, model: ServedModel | None) -> dict[str, Any]:
    endpoint = config.endpoint
    return prune(
        {
            "Image": image_uri(config, "serving", context),
            "Mode": "MultiModel" if endpoint.multi_model else None,
            "ModelDataUrl": model.uri if model else None,
            "Environment": dict(endpoint.environment) or None,
        }
    )


def _call(config: Config, context: JobContext, containers: dict[str, Any]) -> ApiCall:
    body = prune(
        {
            **containers,
            "ExecutionRoleArn": context.role_arn,
            "VpcConfig": vpc_config(config.network),
            "EnableNetworkIsolation": config.network.isolation or None,
            "Tags": tag_list(tags(config)),
        }
    )
    return ApiCall("sagemaker", "CreateModel", {"ModelName": content_name(config.name, body), **body})

"""What the job kinds share: image references, the network, S3 folders, a model's location."""

import os
from pathlib import Path
from typing import Any, Literal

from launcher.config import Config
from launcher.config.images import Image
from launcher.config.limits import Network
from launcher.jobs.api import JobContext, s3_join

PROJECT_TAG = "slipway:project"


def image_uri(config: Config, kind: Literal["training", "serving"], context: JobContext) -> str:
    """The reference SageMaker pulls: the configured one, or repository and tag in the registry."""
    image: Image = getattr(config.images, kind)
    if image.uri:
        return image.uri
    registry = config.images.registry
    if registry is None:
        registry = ecr_registry(context.account, context.region)
    return "/".join(filter(None, (registry, f"{image.repository}:{image.tag}")))


def ecr_registry(account: str, region: str) -> str:
    """Host name of an account's registry."""
    suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{account}.dkr.ecr.{region}.{suffix}"


def project_uri(config: Config, context: JobContext, *parts: str) -> str:
    """A folder of this project in its bucket."""
    return s3_join(f"s3://{context.bucket}", config.name, *parts)


def is_local_path(text: str) -> bool:
    """Whether a source is a directory or file of this machine, not an S3 URI or a file system."""
    return not text.startswith(("s3://", "fs-"))


def data_directories(config: Config, directory: Path) -> tuple[Path, ...]:
    """What reaches jobs as their data, and so does not belong to the code that it may lie among (`code: .`)."""
    sources = [channel.source for channel in config.training.channels.values()] + [config.transform.input]
    return tuple(directory / source for source in sources if source and is_local_path(source))


def tags(config: Config) -> dict[str, str]:
    """The configured tags, and the one by which this project's resources are found again."""
    return {PROJECT_TAG: config.name, **config.tags}


def vpc_config(network: Network) -> dict[str, Any] | None:
    """VpcConfig, or None outside a VPC."""
    if not network.subnets:
        return None
    return {"SecurityGroupIds": network.security_groups, "Subnets": network.subnets}


def training_output_uri(config: Config, context: JobContext) -> str:
    """OutputDataConfig.S3OutputPath."""
    return config.training.output.s3_uri or project_uri(config, context, "output")


def model_data_uri(config: Config, context: JobContext, model: str) -> str:
    """Where a model's archive lies.

    Args:
        config: the project's.
        context: account and bucket.
        model: an S3 URI, a local path of a model.tar.gz, or the name of a training job of this project.
    """
    if model.startswith("s3://"):
        return model
    if is_local_model(model):
        return project_uri(config, context, "models", Path(model).resolve().parent.name, os.path.basename(model))
    return s3_join(training_output_uri(config, context), model, "output/model.tar.gz")


def is_local_model(model: str) -> bool:
    """Whether the text is a path, not a job's name (which has neither slash nor dot)."""
    return not model.startswith("s3://") and ("/" in model or "." in model)

"""CreateModel and CreateTransformJob: a `transform` section as the API's own bodies."""

from pathlib import Path
from typing import Any

from launcher.config import Config
from launcher.config.transform import Transform
from launcher.errors import ConfigError
from launcher.jobs.api import ApiCall, JobContext, Upload, s3_join, tag_list
from launcher.jobs.common import is_local_path, project_uri, tags
from launcher.jobs.hosts import transform_ami
from launcher.jobs.model import ServedModel, model_call
from launcher.jobs.training import prune


def calls(config: Config, context: JobContext, model: ServedModel) -> list[ApiCall]:
    """The requests of one batch transform job.

    Raises:
        ConfigError: the section names no input.
    """
    transform = config.transform
    model_request = model_call(config, context, model)
    request = {
        "TransformJobName": context.job_name,
        "ModelName": model_request.request["ModelName"],
        "MaxConcurrentTransforms": transform.max_concurrent,
        "MaxPayloadInMB": transform.max_payload_mb,
        "BatchStrategy": transform.strategy,
        "ModelClientConfig": _client_config(transform),
        "Environment": dict(transform.environment) or None,
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": transform.data_type, "S3Uri": input_uri(config, context)}},
            "ContentType": transform.content_type,
            "CompressionType": transform.compression if transform.compression != "None" else None,
            "SplitType": transform.split,
        },
        "TransformOutput": {
            "S3OutputPath": output_uri(config, context),
            "Accept": transform.accept,
            "AssembleWith": transform.assemble,
            "KmsKeyId": transform.output.kms_key,
        },
        "TransformResources": {
            "InstanceType": transform.instance_type,
            "InstanceCount": transform.instance_count,
            "VolumeKmsKeyId": transform.volume_kms_key,
            "TransformAmiVersion": transform.ami
            or transform_ami(transform.instance_type, config.images.serving.cuda).ami,
        },
        "DataProcessing": _data_processing(transform),
        "Tags": tag_list(tags(config)),
    }
    return [model_request, ApiCall("sagemaker", "CreateTransformJob", prune(request))]


def input_uri(config: Config, context: JobContext) -> str:
    """TransformInput's location; a local directory stands there as the place it is uploaded to.

    Raises:
        ConfigError: the section names no input.
    """
    source = config.transform.input
    if not source:
        raise ConfigError("transform.input is not set; name a local directory or an S3 URI")
    if is_local_path(source):
        return project_uri(config, context, "transform-input", Path(source).name, "")
    return source


def output_uri(config: Config, context: JobContext) -> str:
    """TransformOutput.S3OutputPath: a folder of the job's own."""
    base = config.transform.output.s3_uri or project_uri(config, context, "transform")
    return s3_join(base, context.job_name)


def uploads(config: Config, context: JobContext, directory: Path) -> list[Upload]:
    """The local directory the job reads."""
    source = config.transform.input
    if not source or not is_local_path(source):
        return []
    return [Upload(directory / source, input_uri(config, context))]


def _client_config(transform: Transform) -> dict[str, Any] | None:
    body = prune({"InvocationsTimeoutInSeconds": transform.timeout, "InvocationsMaxRetries": transform.max_retries})
    return body or None


def _data_processing(transform: Transform) -> dict[str, Any] | None:
    body = prune(
        {"InputFilter": transform.input_filter, "OutputFilter": transform.output_filter, "JoinSource": transform.join}
    )
    return body or None

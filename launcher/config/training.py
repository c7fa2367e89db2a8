"""`training`: a training job, its input channels and its results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from container.contract import BUILTIN_METRICS
from launcher.config.values import (
    CHANNEL_PATTERN,
    DAY,
    Gigabytes,
    InstanceType,
    Output,
    S3Uri,
    Seconds,
    Section,
    Text,
    as_list,
)

STREAMED = {"AugmentedManifestFile", "Gzip", "RecordIO"}  # what a channel may say in Pipe mode alone


class Channel(Section):
    """One input of a training job."""

    short_forms = ("string",)
    source: str
    """A local directory (it is uploaded), an S3 URI, or `fs-…:/path` on EFS or FSx for Lustre."""
    mode: Literal["File", "FastFile", "Pipe"] | None = None
    distribution: Literal["FullyReplicated", "ShardedByS3Key"] = "FullyReplicated"
    data_type: Literal["S3Prefix", "ManifestFile", "AugmentedManifestFile"] = "S3Prefix"
    attributes: list[str] = []
    """AttributeNames of an augmented manifest, in the order they are streamed."""
    content_type: str | None = None
    compression: Literal["None", "Gzip"] | None = None
    record_wrapper: Literal["None", "RecordIO"] | None = None
    shuffle_seed: int | None = None
    instance_groups: list[str] = []
    file_system: Literal["EFS", "FSxLustre"] = "EFS"
    read_only: bool = True

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _modes_agree(self) -> "Channel":
        if self.mode:
            self.check_mode(self.mode)
        return self

    def check_mode(self, mode: str) -> None:
        """Refuse what SageMaker does not do in a mode: the channel's own, or `training.input_mode`.

        Raises:
            ValueError: what does not go together.
        """
        if self.source.startswith("fs-"):
            if mode != "File":
                raise ValueError(f"a file system is mounted, so mode must be File, not {mode}")
        elif mode == "FastFile" and self.data_type == "ManifestFile":
            raise ValueError("mode=FastFile takes data_type S3Prefix only, not ManifestFile; use File")
        elif mode != "Pipe":
            for setting in ("data_type", "compression", "record_wrapper"):
                if getattr(self, setting) in STREAMED:
                    raise ValueError(
                        f"{setting}={getattr(self, setting)} is for Pipe mode only; set mode: Pipe, or leave it out"
                    )


class Spot(Section):
    """Managed spot training."""

    short_forms = ("boolean",)
    max_wait: Seconds | None = Field(default=None, ge=1)
    """Waiting and running together; default: twice `training.max_runtime`."""


class Checkpoints(Section):
    """Where checkpoints are kept while the job runs, and found again by the next one."""

    short_forms = ("boolean", "string")
    s3_uri: S3Uri | None = None
    """Default: a folder of the job's own. Name one to resume from it in the next job."""
    local_path: str | None = None


class InstanceGroup(Section):
    """One kind of machine in a heterogeneous cluster."""

    name: str
    instance_type: InstanceType
    instance_count: int = Field(default=1, ge=1)


class TrainingOutput(Output):
    """Where model.tar.gz and output.tar.gz go."""

    compression: Literal["GZIP", "NONE"] = "GZIP"


class Training(Section):
    """A training job."""

    instance_type: Annotated[
        list[InstanceType],
        BeforeValidator(as_list, json_schema_input_type=str | list[str]),
        Field(min_length=1, max_length=5),
    ] = ["ml.g5.xlarge"]
    """One type, or several in order of preference."""
    instance_count: int = Field(default=1, ge=1)
    instance_groups: list[InstanceGroup] = Field(default=[], max_length=5)
    volume_size_gb: Gigabytes = Field(default=30, ge=1, le=16384)
    volume_kms_key: str | None = None
    max_runtime: Seconds = Field(default=DAY, ge=1, le=28 * DAY)
    input_mode: Literal["File", "FastFile", "Pipe"] = "File"
    channels: dict[Annotated[str, Field(pattern=CHANNEL_PATTERN, max_length=64)], Channel] = Field(
        default={}, max_length=19
    )
    code: Path | None = None
    """Directory with your own script; it becomes the channel `code`."""
    program: str | None = None
    """The script in it; default with `code`: train.py."""
    hyperparameters: dict[str, Any] = {}
    """Nested mappings become dotted names."""
    environment: dict[str, Text] = {}
    metrics: Annotated[list[str], BeforeValidator(as_list, json_schema_input_type=str | list[str])] | dict[str, str] = (
        list(BUILTIN_METRICS)
    )
    """Names printed as `name=value;`, or a mapping from name to regular expression."""
    spot: Spot | None = None
    checkpoints: Checkpoints | None = None
    output: TrainingOutput = TrainingOutput()
    keep_alive: Seconds | None = Field(default=None, ge=1, le=3600)
    """Warm pool: how long the machines wait for the next job."""
    retry_attempts: int | None = Field(default=None, ge=1, le=30)
    max_pending: Seconds | None = Field(default=None, ge=1800, le=2419200)
    remote_debug: bool = False

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        short: dict[str, Any] = {}
        if isinstance(value.get("spot"), bool):
            short["spot"] = {} if value["spot"] else None
        checkpoints = value.get("checkpoints")
        if isinstance(checkpoints, bool):
            short["checkpoints"] = {} if checkpoints else None
        elif isinstance(checkpoints, str):
            short["checkpoints"] = {} if checkpoints == "auto" else {"s3_uri": checkpoints}
        return {**value, **short}

    @model_validator(mode="after")
    def _channels_agree(self) -> "Training":
        groups = {group.name for group in self.instance_groups}
        for name, channel in self.channels.items():
            unknown = sorted(set(channel.instance_groups) - groups)
            if unknown:
                raise ValueError(f"channels.{name}.instance_groups={unknown}: instance_groups has no such name")
            try:
                channel.check_mode(channel.mode or self.input_mode)
            except ValueError as error:
                raise ValueError(f"channels.{name}: {error}") from error
        return self

    @model_validator(mode="after")
    def _options_agree(self) -> "Training":
        if self.spot and self.keep_alive:
            raise ValueError("keep_alive (a warm pool) and spot exclude each other; remove one")
        if self.instance_groups and self.keep_alive:
            raise ValueError("keep_alive (a warm pool) is not available with instance_groups; remove one")
        if self.spot and self.spot.max_wait is not None and self.spot.max_wait < self.max_runtime:
            raise ValueError(
                f"spot.max_wait={self.spot.max_wait}s is shorter than max_runtime={self.max_runtime}s; "
                "it counts waiting and running together"
            )
        if self.program and not self.code:
            raise ValueError(f"program={self.program!r} needs code, the directory it lies in")
        return self

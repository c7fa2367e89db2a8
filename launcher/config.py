"""`launcher.yaml`: what a person writes, checked once and then trusted.

The models below are the whole surface; a setting has one place. `load` in `launcher.settings` reads the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from container.contract import BUILTIN_METRICS

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
GIGABYTES = {"GB": 1, "TB": 1024}
DAY = 86400
CHANNEL_NAME = r"[A-Za-z][A-Za-z0-9_]*"  # narrower than the API: it must also be a variable name (SM_CHANNEL_…)
NAME = r"[a-zA-Z0-9](-*[a-zA-Z0-9])*"


def parse_duration(value: object) -> object:
    """`90`, `"90s"`, `"15m"`, `"1h30m"` or `"2d"` as seconds; anything else is left for pydantic to refuse.

    Raises:
        ValueError: a text that is no duration.
    """
    if not isinstance(value, str) or value.isdigit():
        return value
    if not re.fullmatch(r"(\d+[smhd])+", value):
        raise ValueError(f"{value!r} is no duration; write it like '90s', '15m', '8h' or '1h30m'")
    return sum(int(number) * SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhd])", value))


def parse_gigabytes(value: object) -> object:
    """`30`, `"30GB"` or `"1TB"` as gigabytes.

    Raises:
        ValueError: a text that is no size.
    """
    if not isinstance(value, str) or value.isdigit():
        return value
    match = re.fullmatch(r"(\d+) ?(GB|TB)", value)
    if not match:
        raise ValueError(f"{value!r} is no size; write it like '30GB' or '1TB'")
    return int(match[1]) * GIGABYTES[match[2]]


def as_list(value: object) -> object:
    """A single value where a list is allowed."""
    return [value] if isinstance(value, str) else value


def as_text(value: object) -> object:
    """A YAML scalar as the text a container sees: `true`, not `True`."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


# json_schema_input_type: what an editor may accept, beside the value's own type
Seconds = Annotated[int, BeforeValidator(parse_duration, json_schema_input_type=int | str)]
Gigabytes = Annotated[int, BeforeValidator(parse_gigabytes, json_schema_input_type=int | str)]
Text = Annotated[str, BeforeValidator(as_text, json_schema_input_type=str | bool | int | float)]
InstanceType = Annotated[str, Field(pattern=r"ml\.[a-z0-9-]+\.[a-z0-9]+|local")]
S3Uri = Annotated[str, Field(pattern=r"s3://[^/]+(/.*)?")]


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    short_forms: ClassVar[tuple[str, ...]] = ()
    """JSON types that may stand in the section's place: `spot: true`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        full = handler(core_schema)
        return {"anyOf": [*({"type": name} for name in cls.short_forms), full]} if cls.short_forms else full


class Image(Section):
    """Where an image comes from, and where it goes."""

    repository: str
    """Name in the registry, such as `slipway-train`."""
    tag: str = "latest"
    uri: str | None = None
    """A complete reference (`registry/repository:tag` or `…@sha256:…`) that is used as it stands."""
    dockerfile: Path
    context: Path = Path(".")
    base_image: str | None = None
    """Build argument BASE_IMAGE; default: the Dockerfile's own."""
    build_args: dict[str, Text] = {}
    platform: str = "linux/amd64"
    keep: int = Field(default=20, ge=1)
    """How many pushed images the repository's lifecycle policy keeps."""
    max_size_gb: float = Field(default=15, gt=0)
    """Budget for `image check`, uncompressed."""
    cuda: str | None = "13.0"
    """CUDA version inside; null for a CPU image. Decides `InferenceAmiVersion`."""


class TrainingImage(Image):
    """The training image's defaults."""

    repository: str = "slipway-train"
    dockerfile: Path = Path("Dockerfile.train")


class ServingImage(Image):
    """The serving image's defaults."""

    repository: str = "slipway-serve"
    dockerfile: Path = Path("Dockerfile.serve")


class Images(Section):
    """The two images, and the registry they are pushed to."""

    registry: str | None = None
    """Registry host; default: this account's ECR. An empty text means the local engine's own images."""
    network: str | None = None
    """Network of a build's RUN steps, such as `host`."""
    buildkit: bool = False
    """Build with the docker client and BuildKit, for Dockerfiles with cache mounts."""
    cache: bool = False
    """Pull what was pushed last before building: for machines that start empty, such as CodeBuild's."""
    codebuild_project: str | None = None
    """CodeBuild project that `build --remote` starts; it runs buildspec.yml."""
    min_free_gb: float = Field(default=5, ge=0)
    """Disk that must be free before a build."""
    training: TrainingImage = TrainingImage()
    serving: ServingImage = ServingImage()


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
        if self.data_type == "AugmentedManifestFile" and self.mode != "Pipe":
            raise ValueError("data_type=AugmentedManifestFile is read in Pipe mode only; set mode: Pipe")
        if self.mode == "FastFile" and self.data_type != "S3Prefix":
            raise ValueError(f"mode=FastFile takes data_type S3Prefix only, not {self.data_type}; use File")
        if self.source.startswith("fs-") and self.mode not in (None, "File"):
            raise ValueError(f"a file system is mounted, so mode must be File, not {self.mode}")
        return self


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


class Output(Section):
    """Where a job's results go."""

    s3_uri: S3Uri | None = None
    """Default: `s3://<bucket>/<name>/output`."""
    kms_key: str | None = None


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
    channels: dict[Annotated[str, Field(pattern=rf"^{CHANNEL_NAME}$", max_length=64)], Channel] = Field(
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


class Transform(Section):
    """A batch transform job."""

    instance_type: InstanceType = "ml.g5.xlarge"
    instance_count: int = Field(default=1, ge=1, le=100)
    model: str | None = None
    """A training job's name, an S3 URI or a local model.tar.gz; default: the newest training job."""
    input: str | None = None
    """A local directory (it is uploaded) or an S3 URI."""
    data_type: Literal["S3Prefix", "ManifestFile"] = "S3Prefix"
    output: Output = Output()
    content_type: str | None = None
    accept: str | None = None
    split: Literal["None", "Line", "RecordIO", "TFRecord"] = "None"
    strategy: Literal["MultiRecord", "SingleRecord"] | None = None
    assemble: Literal["None", "Line"] = "Line"
    compression: Literal["None", "Gzip"] = "None"
    max_concurrent: int | None = Field(default=None, ge=0)
    max_payload_mb: int | None = Field(default=None, ge=0, le=100)
    timeout: Seconds | None = Field(default=None, ge=1, le=3600)
    max_retries: int | None = Field(default=None, ge=0, le=3)
    environment: dict[str, Text] = Field(default={}, max_length=16)
    input_filter: str | None = Field(default=None, max_length=63)
    output_filter: str | None = Field(default=None, max_length=63)
    join: Literal["None", "Input"] | None = None
    volume_kms_key: str | None = None
    ami: str | None = None
    """TransformAmiVersion; default: chosen from the image's CUDA version."""

    @model_validator(mode="after")
    def _payload_fits(self) -> "Transform":
        if (self.max_concurrent or 0) * (self.max_payload_mb or 0) > 100:
            raise ValueError(
                f"max_concurrent={self.max_concurrent} times max_payload_mb={self.max_payload_mb} is over 100; "
                "lower one"
            )
        if self.join == "Input" and (self.split, self.assemble) != ("Line", "Line") and self.split != "None":
            raise ValueError("join: Input needs split: Line and assemble: Line")
        return self


class Serverless(Section):
    """A serverless variant."""

    short_forms = ("boolean",)
    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = 4096
    max_concurrency: int = Field(default=5, ge=1, le=200)
    provisioned_concurrency: int | None = Field(default=None, ge=1, le=200)


class Asynchronous(Section):
    """Asynchronous inference: requests and answers are S3 objects."""

    short_forms = ("boolean",)
    output: S3Uri | None = None
    failure: S3Uri | None = None
    max_concurrent: int | None = Field(default=None, ge=1, le=1000)
    success_topic: str | None = None
    error_topic: str | None = None


class Capture(Section):
    """Data capture: a share of requests and answers is written to S3."""

    short_forms = ("boolean",)
    sampling: int = Field(default=100, ge=0, le=100)
    s3_uri: S3Uri | None = None


class ScalingStep(Section):
    """One step: what happens where the metric is above, or below, a value."""

    above: float | None = Field(default=None, ge=0)
    below: float | None = Field(default=None, ge=0)
    change: int
    """Instances to add, or with a minus to take away."""

    @model_validator(mode="after")
    def _one_direction(self) -> "ScalingStep":
        if (self.above is None) == (self.below is None):
            raise ValueError("a step has either above or below")
        if self.change == 0 or (self.change > 0) != (self.above is not None):
            raise ValueError(f"change={self.change}: a step above a value adds, one below it takes away (change: -1)")
        return self


class ScheduledScaling(Section):
    """Bounds that hold from a time on."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=63)]
    when: Annotated[str, Field(pattern=r"(cron|rate|at)\(.+\)")]
    """`cron(0 8 ? * MON-FRI *)`, `at(2026-12-24T18:00:00)` or `rate(12 hours)`."""
    timezone: str | None = None
    """Of `when`, such as `Europe/Berlin`; default: UTC."""
    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _says_something(self) -> "ScheduledScaling":
        if self.min is None and self.max is None:
            raise ValueError("a scheduled entry needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min} is larger than max={self.max}")
        return self


class Scaling(Section):
    """Application Auto Scaling on the endpoint's variant."""

    min: int = Field(default=1, ge=0)
    max: int = Field(ge=1)
    metric: Literal["invocations", "concurrency"] = "invocations"
    """What is looked at, of real-time endpoints and components: requests a minute, or requests under way."""
    target: float | None = Field(default=None, gt=0)
    """Per instance; of asynchronous endpoints queued requests, of serverless ones utilization 0..1."""
    scale_in: bool = True
    """Whether instances are taken away again."""
    scale_in_cooldown: Seconds = 300
    scale_out_cooldown: Seconds = 60
    steps: list[ScalingStep] = Field(default=[], max_length=20)
    """Changes by how far the metric is over or under a value, beside or instead of `target`."""
    schedule: list[ScheduledScaling] = []
    """Other bounds at certain times."""

    @model_validator(mode="after")
    def _bounds_agree(self) -> "Scaling":
        if self.min > self.max:
            raise ValueError(f"min={self.min} is larger than max={self.max}")
        if len({item.name for item in self.schedule}) < len(self.schedule):
            raise ValueError("schedule has two entries of one name")
        return self


class RolloutAlarm(Section):
    """A CloudWatch alarm: the name of one that is there, or what `deploy` shall make for each variant."""

    short_forms = ("string",)
    name: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    metric: Literal["errors", "client_errors", "latency"] | None = None
    above: float | None = Field(default=None, gt=0)
    """Percent of the requests; of `latency`, milliseconds that one request in ten exceeds."""
    period: Seconds = 60
    """10, 20 or 30 seconds, or full minutes."""
    periods: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _is_named_or_made(self) -> "RolloutAlarm":
        is_made = self.metric is not None and self.above is not None
        if is_made == bool(self.name) or (self.name and (self.metric or self.above)):
            raise ValueError("an alarm is the name of one that is there, or metric and above of one to make")
        if self.period not in (10, 20, 30) and (self.period < 60 or self.period % 60):
            raise ValueError(f"period={self.period}s: CloudWatch takes 10, 20 or 30 seconds, or full minutes")
        return self


class Rollout(Section):
    """How an update reaches the fleet, and what takes it back."""

    type: Literal["all_at_once", "canary", "linear", "rolling"] = "all_at_once"
    """All at once, a part first, or equal parts, with a new fleet beside the old; rolling: instance by instance."""
    percent: int = Field(default=10, ge=1, le=50)
    """The first part, or each."""
    wait: Seconds = Field(default=600, ge=0, le=3600)
    """After each part, while the alarms are watched."""
    keep_old: Seconds = Field(default=0, ge=0, le=3600)
    """How long the old fleet stays after the last part."""
    timeout: Seconds = Field(default=14400, ge=600, le=28800)
    """An update that takes longer is taken back."""
    alarms: list[RolloutAlarm] = Field(default=[], max_length=10)
    """CloudWatch alarms that take the update back: names, or what `deploy` shall make."""

    def shares(self) -> list[int]:
        """Percent of the traffic on the new fleet, after each part."""
        if self.type == "all_at_once":
            return [100]
        parts = [self.percent] if self.type == "canary" else list(range(self.percent, 100, self.percent))
        return [*parts, 100]

    @model_validator(mode="after")
    def _can_be_kept(self) -> "Rollout":
        lowest = {"linear": 10, "rolling": 5}.get(self.type, 1)
        if self.percent < lowest:
            raise ValueError(f"percent={self.percent} is too small for type={self.type}; at least {lowest}")
        if self.type == "rolling" and self.keep_old:
            raise ValueError("keep_old is not for type=rolling, which takes old instances away as it goes")
        waits = self.wait * len(self.shares()) + self.keep_old
        if waits >= self.timeout:
            raise ValueError(
                f"{len(self.shares())} parts with wait={self.wait}s and keep_old={self.keep_old}s take {waits}s, "
                f"longer than timeout={self.timeout}s; raise timeout or shorten wait"
            )
        return self


class Container(Section):
    """One of several containers of a multi-container endpoint."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=63)]
    """ContainerHostname; a caller of a direct endpoint chooses by it."""
    image: str | None = None
    """A complete reference; default: the serving image."""
    model: str | None = None
    environment: dict[str, Text] = {}


class Variant(Section):
    """One of several models behind an endpoint."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=63)]
    model: str
    weight: float = Field(default=1.0, ge=0)
    instance_type: InstanceType | None = None
    instance_count: int | None = Field(default=None, ge=1)


class Component(Section):
    """An inference component: copies of a model that share the endpoint's machines with others."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=40)]
    model: str
    copies: int = Field(default=1, ge=0)
    cpus: float | None = Field(default=None, ge=0.25)
    """Cores of each copy."""
    accelerators: int | None = Field(default=None, ge=1)
    """GPUs of each copy."""
    memory_mb: int = Field(default=1024, ge=128)
    environment: dict[str, Text] = {}
    scaling: Scaling | None = None
    """Of the copies; `min: 0` takes the last one away, and the first request that fails brings one back."""


class ManagedInstances(Section):
    """Machines for inference components, as many as their copies need."""

    min: int = Field(default=1, ge=0)
    max: int = Field(ge=1)


class Endpoint(Section):
    """A real-time, serverless or asynchronous endpoint."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=63)] | None = None
    """Default: the project's name."""
    instance_type: InstanceType = "ml.g5.xlarge"
    instance_count: int = Field(default=1, ge=0)
    model: str | None = None
    """A training job's name, an S3 URI or a local model.tar.gz; default: the newest training job."""
    code: Path | None = None
    """Directory with your own inference.py; it goes into model.tar.gz under code/, for batch transform as well."""
    variants: list[Variant] = Field(default=[], max_length=10)
    """Several models with weights; then `model` is not read."""
    shadow: Variant | None = None
    """A variant that gets copies of the requests and whose answers nobody sees."""
    multi_model: bool = False
    """`model` is a prefix in S3 under which lie many model.tar.gz."""
    containers: list[Container] = Field(default=[], max_length=15)
    """Several containers instead of one; each may have a model of its own."""
    container_mode: Literal["Serial", "Direct"] = "Serial"
    """Serial: each container's answer is the next one's request. Direct: the caller chooses one."""
    components: list[Component] = Field(default=[], max_length=20)
    """Several models that share machines, each with copies of its own; then `model` is not read."""
    managed_instances: ManagedInstances | None = None
    """Machines come and go with the copies of `components`; then `instance_count` is what it starts with."""
    environment: dict[str, Text] = {}
    serverless: Serverless | None = None
    asynchronous: Asynchronous | None = None
    capture: Capture | None = None
    scaling: Scaling | None = None
    rollout: Rollout | None = None
    ttl: Seconds | None = Field(default=None, ge=60)
    """`reap` deletes the endpoint when it is older; for trials nobody should forget."""
    volume_size_gb: Gigabytes | None = Field(default=None, ge=1, le=512)
    download_timeout: Seconds | None = Field(default=None, ge=60, le=3600)
    startup_timeout: Seconds | None = Field(default=None, ge=60, le=3600)
    ami: str | None = None
    """InferenceAmiVersion; default: chosen from the image's CUDA version."""
    kms_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        switches = ("serverless", "asynchronous", "capture")
        return {
            key: ({} if item else None) if key in switches and isinstance(item, bool) else item
            for key, item in value.items()
        }

    @model_validator(mode="after")
    def _scaling_has_a_target(self) -> "Endpoint":
        if not self.scaling:
            return self
        is_told = self.scaling.target or self.scaling.steps or self.scaling.schedule
        if not is_told and not (self.asynchronous or self.serverless):
            raise ValueError(
                "scaling.target is not set: invocations per instance and minute at which another instance starts; "
                "`invoke --repeat` measures what one instance takes"
            )
        if self.serverless and self.scaling.steps:
            raise ValueError("scaling.steps is not for serverless endpoints; use target or schedule")
        if self.scaling.min == 0 and not self.asynchronous:
            raise ValueError("scaling.min=0 needs asynchronous: true; other endpoints keep at least one instance")
        return self

    @model_validator(mode="after")
    def _containers_agree(self) -> "Endpoint":
        if not self.containers:
            return self
        if len(self.containers) < 2:
            raise ValueError("containers has one entry; several containers are at least two")
        if self.variants or self.multi_model:
            raise ValueError("containers excludes variants and multi_model; remove one of them")
        return self

    @model_validator(mode="after")
    def _components_agree(self) -> "Endpoint":
        if not self.components:
            if self.managed_instances:
                raise ValueError("managed_instances is for endpoints with components")
            return self
        taken = {
            "variants": self.variants,
            "containers": self.containers,
            "shadow": self.shadow,
            "multi_model": self.multi_model,
            "serverless": self.serverless,
            "asynchronous": self.asynchronous,
        }
        clash = [name for name, value in taken.items() if value]
        if clash:
            raise ValueError(f"components excludes {', '.join(clash)}; remove one of the two")
        if len({item.name for item in self.components}) < len(self.components):
            raise ValueError("two components have the same name")
        if self.scaling:
            raise ValueError("components scale each for itself (components[].scaling), machines by managed_instances")
        for item in self.components:
            if item.scaling and not (item.scaling.target or item.scaling.steps or item.scaling.schedule):
                raise ValueError(f"components {item.name}: scaling.target is not set: requests per copy")
        return self

    @model_validator(mode="after")
    def _modes_agree(self) -> "Endpoint":
        if not self.serverless:
            return self
        taken = {
            "asynchronous": self.asynchronous,
            "capture": self.capture,
            "multi_model": self.multi_model,
            "shadow": self.shadow,
            "several variants": len(self.variants) > 1,
        }
        clash = [name for name, value in taken.items() if value]
        if clash:
            raise ValueError(f"serverless excludes {', '.join(clash)}; remove one of the two")
        return self


class Network(Section):
    """Where containers run, for every job kind."""

    subnets: list[str] = Field(default=[], max_length=16)
    security_groups: list[str] = Field(default=[], max_length=5)
    isolation: bool = False
    encrypt_traffic: bool = False

    @model_validator(mode="after")
    def _both_or_none(self) -> "Network":
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("subnets and security_groups go together; give both or neither")
        return self


class Limits(Section):
    """What a request may cost at most, in US dollars, and which tags it must carry."""

    max_job_cost: float | None = Field(default=None, gt=0)
    max_endpoint_cost_per_month: float | None = Field(default=None, gt=0)
    required_tags: list[str] = []
    """Keys that `tags` must have, such as a cost centre's."""


class Config(Section):
    """The whole file."""

    name: Annotated[str, Field(pattern=rf"^{NAME}$", max_length=40)] = "slipway"
    """The project: jobs, endpoints and S3 folders start with it."""
    region: str = "us-east-1"
    role: str | None = None
    """The jobs' execution role: its name or ARN."""
    bucket: str | None = None
    """Default: sagemaker-<region>-<account>."""
    tags: dict[str, Text] = Field(default={}, max_length=45)
    images: Images = Images()
    training: Training = Training()
    transform: Transform = Transform()
    endpoint: Endpoint = Endpoint()
    network: Network = Network()
    limits: Limits = Limits()

    @model_validator(mode="after")
    def _tags_are_there(self) -> "Config":
        missing = [key for key in self.limits.required_tags if not self.tags.get(key)]
        if missing:
            raise ValueError(f"limits.required_tags asks for the tags {', '.join(missing)}; set them under tags")
        return self

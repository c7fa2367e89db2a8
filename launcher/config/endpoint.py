"""`endpoint`: an endpoint, and the variants, containers or components behind it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from launcher.config.rollout import Rollout
from launcher.config.scaling import Scaling
from launcher.config.values import NAME_PATTERN, Gigabytes, InstanceType, S3Uri, Seconds, Section, Text


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


class Container(Section):
    """One of several containers of a multi-container endpoint."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
    """ContainerHostname; a caller of a direct endpoint chooses by it."""
    image: str | None = None
    """A complete reference; default: the serving image."""
    model: str | None = None
    environment: dict[str, Text] = {}


class Variant(Section):
    """One of several models behind an endpoint."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
    model: str
    weight: float = Field(default=1.0, ge=0)
    instance_type: InstanceType | None = None
    instance_count: int | None = Field(default=None, ge=1)


class Component(Section):
    """An inference component: copies of a model that share the endpoint's machines with others."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)]
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

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)] | None = None
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
    """`endpoints reap` deletes the endpoint when it is older; for trials nobody should forget."""
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
    def _multi_model_has_a_prefix(self) -> "Endpoint":
        if not self.multi_model:
            return self
        named = [variant.model for variant in self.variants] or [self.model or ""]
        single = [model for model in named if not re.fullmatch(r"s3://[^/]+/.+(?<!\.tar\.gz)", model)]
        if single:
            raise ValueError(
                f"multi_model: true and model={single[0]!r}; many models lie below a prefix such as s3://bucket/models/"
            )
        if self.asynchronous:  # InvokeEndpointAsync has no TargetModel
            raise ValueError("multi_model excludes asynchronous; remove one of the two")
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
            "rollout": self.rollout,
            "several variants": len(self.variants) > 1,
        }
        clash = [name for name, value in taken.items() if value]
        if clash:
            raise ValueError(f"serverless excludes {', '.join(clash)}; remove one of the two")
        return self

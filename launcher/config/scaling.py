"""`endpoint.scaling` and `endpoint.components[].scaling`: how many instances or copies there are, and when."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from launcher.config.values import NAME_PATTERN, Seconds, Section

SCHEDULE_PATTERN = r"^(cron|rate|at)\(.+\)$"


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

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)]
    when: Annotated[str, Field(pattern=SCHEDULE_PATTERN)]
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

"""`endpoint.rollout`: how an update reaches the fleet, and what takes it back."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from launcher.config.values import Seconds, Section


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

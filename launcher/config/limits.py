"""`network` and `limits`: what holds for every job and endpoint."""

from pydantic import Field, model_validator

from launcher.config.values import Section


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

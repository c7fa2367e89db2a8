"""`launcher.yaml`: what a person writes, checked once and then trusted.

The models of this package are the whole surface, one module for each section of the file; a setting has one place.
`load` in `launcher.settings` reads the file.
"""

from typing import Annotated

from pydantic import Field, model_validator

from launcher.config.endpoint import Endpoint
from launcher.config.images import Images
from launcher.config.limits import Limits, Network
from launcher.config.training import Training
from launcher.config.transform import Transform
from launcher.config.values import NAME_PATTERN, Section, Text


class Config(Section):
    """The whole file."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)] = "slipway"
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

"""How values are written in `launcher.yaml`: durations, sizes, names; and what every section is."""

import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
GIGABYTES = {"GB": 1, "TB": 1024}
DAY = 86400
CHANNEL_PATTERN = r"^[A-Za-z][A-Za-z0-9_]*$"  # narrower than the API: it must also be a variable name (SM_CHANNEL_…)
NAME_PATTERN = r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$"
INSTANCE_PATTERN = r"^(ml\.[a-z0-9-]+\.[a-z0-9]+|local)$"
S3_PATTERN = r"^s3://[^/]+(/.*)?$"


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
InstanceType = Annotated[str, Field(pattern=INSTANCE_PATTERN)]
S3Uri = Annotated[str, Field(pattern=S3_PATTERN)]


class Section(BaseModel):
    """A mapping of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    short_forms: ClassVar[tuple[str, ...]] = ()
    """JSON types that may stand in the section's place: `spot: true`."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        full = handler(core_schema)
        return {"anyOf": [*({"type": name} for name in cls.short_forms), full]} if cls.short_forms else full


class Output(Section):
    """Where a job's results go."""

    s3_uri: S3Uri | None = None
    """Default: `s3://<bucket>/<name>/output`."""
    kms_key: str | None = None

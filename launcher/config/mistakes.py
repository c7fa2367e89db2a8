"""What is wrong in `launcher.yaml`, in words for whoever wrote it: where, what, which value, and what to write."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from launcher.config import Config
from launcher.config.scaling import SCHEDULE_PATTERN
from launcher.config.training import CHANNEL_PATTERN
from launcher.config.values import INSTANCE_PATTERN, NAME_PATTERN, S3_PATTERN

WORDS = {  # by pydantic's type of error; `{…}` is what its context names
    "missing": "it must be set",
    "dict_type": "it must be a mapping, such as {{key: value}}",
    "model_type": "it must be a mapping, such as {{key: value}}",
    "list_type": "it must be a list, such as [a, b]",
    "string_type": "it must be a text",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "float_parsing": "it must be a number",
    "greater_than_equal": "it must be at least {ge}",
    "greater_than": "it must be over {gt}",
    "less_than_equal": "it must be at most {le}",
    "literal_error": "it must be {expected}",
    "string_too_long": "it may have at most {max_length} characters",
    "string_too_short": "it must not be empty",
    "too_long": "it may have at most {max_length} entries",
}
SPELLING = {
    INSTANCE_PATTERN: "it is no instance type; write it like ml.g5.xlarge",
    S3_PATTERN: "it is no S3 URI; write it like s3://bucket/folder",
    NAME_PATTERN: "it may have letters, digits and, between them, hyphens",
    CHANNEL_PATTERN: "a channel's name begins with a letter and has letters, digits and _",
    SCHEDULE_PATTERN: "write it like cron(0 8 ? * MON-FRI *), at(2026-12-24T18:00:00) or rate(12 hours)",
}


def explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """Every finding of pydantic as one line: where, what, which value, and the nearest name of a misspelt key.

    Args:
        error: of `Config`.
        origins: dotted key -> `launcher.yaml:12` or `--set`.
    """
    return "\n".join(dict.fromkeys(_finding(item, origins) for item in error.errors()))


def not_yaml(path: object, error: yaml.YAMLError) -> str:
    """Where a file stops being YAML, and why."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{path} is not YAML: {' '.join(str(error).split())}"
    tab = "'\\t'" in f"{error.problem}" or "cannot start any token" in f"{error.problem}"
    hint = "; indent with spaces, not with tabs" if tab else ""
    return f"{path}:{error.problem_mark.line + 1} is not YAML: {error.problem}{hint}"


def _finding(item: Any, origins: Mapping[str, str]) -> str:
    # pydantic names union members in the location (`metrics.list[str]`); the file has no such key
    parts = [str(part) for part in item["loc"] if not re.search(r"[\[(]", str(part))]
    key = ".".join(parts)
    known = (".".join(parts[:length]) for length in range(len(parts), -1, -1))
    where = next((origins[name] for name in known if name in origins), "")
    prefix = f"{where}: " if where else ""
    if item["type"] == "extra_forbidden":
        return f"{prefix}unknown setting {key!r}{_nearest(parts)}"
    value = "" if isinstance(item["input"], Mapping | BaseModel) else f"={item['input']!r}"
    return f"{prefix}{key}{value}: {_words(item)}" if key else f"{prefix}{_words(item)}"  # about the file as a whole


def _words(item: Any) -> str:
    context = item.get("ctx", {})
    if context.get("pattern") in SPELLING:
        return SPELLING[context["pattern"]]
    if item["type"] in WORDS:
        return WORDS[item["type"]].format(**context)
    return str(item["msg"].removeprefix("Value error, "))


def _nearest(parts: list[str]) -> str:
    section: Any = Config
    for part in parts[:-1]:
        section = _section_of(section, part)
    names = list(getattr(section, "model_fields", {}))
    close = difflib.get_close_matches(parts[-1], names, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    own = f"; a hyperparameter stands at training.hyperparameters.{parts[-1]}" if parts[:-1] == ["training"] else ""
    return own + (f"; known here: {', '.join(names)}" if names else "")


def _section_of(section: Any, name: str) -> Any:
    """The model of a key's value, through Optional, list and dict annotations."""
    fields = getattr(section, "model_fields", {})
    if name not in fields:
        return section  # an entry of a mapping or a list: its model was found at the key above
    pending = [fields[name].annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending += getattr(annotation, "__args__", ())
    return None

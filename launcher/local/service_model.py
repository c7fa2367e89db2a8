"""Requests and responses, checked and written by walking botocore's model of the service.

The same model that boto3, the AWS CLI and the SageMaker SDK read decides here what a request may hold and what a
response carries, so that an operation is written once as a plain function over dicts.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from typing import Any, TypeAlias

import botocore.loaders
import botocore.model

from launcher.local.errors import SerializationException, ValidationException

Shape: TypeAlias = Any  # botocore.model.Shape, whose members hang on its type
SHOWN_CHARACTERS = 500  # of a value in a message: a map of hyperparameters may be long
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "timestamp": (int, float, str),
    "blob": (str,),
}


@cache
def service_model(service: str) -> botocore.model.ServiceModel:
    """Botocore's model of `sagemaker` or `sagemaker-runtime`."""
    return botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model(service, "service-2"), service)


def validate_request(shape: Shape, request: Any) -> None:
    """Refuse what the service would refuse, in its words.

    Raises:
        SerializationException: a member has the wrong JSON type.
        ValidationException: every broken constraint, each with its value and path.
    """
    problems = list(constraint_problems(shape, request, ""))
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        raise ValidationException(count + "; ".join(problems))


def constraint_problems(shape: Shape, value: Any, path: str) -> Iterator[str]:
    """One sentence per constraint that `value` breaks; `path` is the value's place, such as `resourceConfig`."""
    _check_json_type(shape, value)
    if shape.type_name == "structure":
        yield from _structure_problems(shape, value, path)
    elif shape.type_name == "list":
        yield from _bound_problems(shape, value, path, len(value), "length")
        for index, item in enumerate(value, start=1):
            yield from constraint_problems(shape.member, item, f"{path}.{index}.member")
    elif shape.type_name == "map":
        yield from _bound_problems(shape, value, path, len(value), "length")
        for key, item in value.items():
            yield from constraint_problems(shape.key, key, f"{path}.key")
            yield from constraint_problems(shape.value, item, f"{path}.{key}.member")
    elif shape.type_name == "string":
        yield from _string_problems(shape, value, path)
    elif shape.type_name in ("integer", "long", "float", "double"):
        yield from _bound_problems(shape, value, path, value, "value")


def _check_json_type(shape: Shape, value: Any) -> None:
    expected = JSON_TYPES[shape.type_name]
    is_wrong_bool = isinstance(value, bool) and shape.type_name != "boolean"
    if is_wrong_bool or not isinstance(value, expected):
        raise SerializationException(f"{type(value).__name__} can not be converted to a {shape.type_name}: {value!r}")


def _structure_problems(shape: Shape, value: dict[str, Any], path: str) -> Iterator[str]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield _problem(None, _join(path, name), "Member must not be null")
    for name, member in shape.members.items():
        if value.get(name) is not None:
            yield from constraint_problems(member, value[name], _join(path, name))


def _string_problems(shape: Shape, value: str, path: str) -> Iterator[str]:
    allowed = shape.metadata.get("enum")
    if allowed and value not in allowed:
        yield _problem(value, path, f"Member must satisfy enum value set: [{', '.join(allowed)}]")
        return
    yield from _bound_problems(shape, value, path, len(value), "length")
    pattern = shape.metadata.get("pattern")
    if pattern and not _matches(pattern, value):
        yield _problem(value, path, f"Member must satisfy regular expression pattern: {pattern}")


def _bound_problems(shape: Shape, value: Any, path: str, size: float, what: str) -> Iterator[str]:
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        yield _problem(value, path, f"Member must have {what} greater than or equal to {low}")
    if high is not None and size > high:
        yield _problem(value, path, f"Member must have {what} less than or equal to {high}")


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    # Java's Unicode classes, which Python's re lacks; \w and \s are wide enough for letters, digits and separators.
    portable = pattern.replace(r"\p{L}", r"\w").replace(r"\p{N}", r"\d").replace(r"\p{Z}", r"\s")
    portable = portable.replace(r"\p{M}", r"\w").replace(r"\p{S}", r"$+<=>^`|~").replace(r"\p{P}", r"!-/:-@_")
    try:
        return re.compile(portable, re.DOTALL)
    except re.error:
        return None  # a dialect that Python cannot compile is not checked


def _matches(pattern: str, value: str) -> bool:
    compiled = _compiled(pattern)
    return compiled is None or compiled.fullmatch(value) is not None


def _problem(value: Any, path: str, constraint: str) -> str:
    shown = str(value)
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}… ({len(shown)} characters)"
    quoted = "null" if value is None else f"'{shown}'"
    return f"Value {quoted} at '{path}' failed to satisfy constraint: {constraint}"


def _join(path: str, name: str) -> str:
    lower = name[:1].lower() + name[1:]
    return f"{path}.{lower}" if path else lower


def serialize(shape: Shape | None, value: Any) -> Any:
    """`value` as JSON of that shape: unknown members dropped, None dropped, times as epoch seconds."""
    if shape is None:
        return {}
    if shape.type_name == "structure":
        members = shape.members
        return {name: serialize(members[name], item) for name, item in value.items() if _kept(members, name, item)}
    if shape.type_name == "list":
        return [serialize(shape.member, item) for item in value]
    if shape.type_name == "map":
        return {key: serialize(shape.value, item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.timestamp()
    return value


def _kept(members: dict[str, Shape], name: str, item: Any) -> bool:
    return name in members and item is not None

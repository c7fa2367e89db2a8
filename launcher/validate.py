"""Checks a request offline against the API's own model, as it lies in botocore: names, types, limits, patterns.

botocore itself checks names, types and minima only; enums, patterns and maxima are refused by the service, minutes
later. The model's JSON is read directly: importing botocore costs more than a dry run may take.
"""

import functools
import gzip
import importlib.util
import json
import logging
import re
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.jobs.api import ApiCall
from launcher.jobs.training import sdk_script_mode_problems

logger = logging.getLogger(__name__)

# Java's way to write a class of characters -> Python's
CHARACTER_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{Z}": r"\s",
    r"\p{N}": r"\d",
    r"\p{Alnum}": "A-Za-z0-9",
    r"\p{Print}": r"[\x20-\x7E]",
    r"\uD800\uDC00-\uDBFF\uDFFF": r"\U00010000-\U0010FFFF",
}
TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (float, int),
    "double": (float, int),
    "boolean": (bool,),
}


# What a request says, and where the user has said it; the longest path counts.
SETTINGS = {
    "CreateTrainingJob.AlgorithmSpecification.MetricDefinitions": "training.metrics",
    "CreateTrainingJob.AlgorithmSpecification.TrainingImage": "images.training",
    "CreateTrainingJob.CheckpointConfig": "training.checkpoints",
    "CreateTrainingJob.Environment": "training.environment",
    "CreateTrainingJob.HyperParameters": "training.hyperparameters",
    "CreateTrainingJob.InputDataConfig": "training.channels",
    "CreateTrainingJob.OutputDataConfig": "training.output",
    "CreateTrainingJob.ResourceConfig": "training",
    "CreateTrainingJob.ResourceConfig.InstanceGroups": "training.instance_groups",
    "CreateTrainingJob.ResourceConfig.InstanceType": "training.instance_type",
    "CreateTrainingJob.ResourceConfig.VolumeKmsKeyId": "training.volume_kms_key",
    "CreateTransformJob": "transform",
    "CreateTransformJob.Environment": "transform.environment",
    "CreateModel.PrimaryContainer": "endpoint (or transform) and images.serving",
    "CreateModel.Containers": "endpoint.containers",
    "CreateEndpointConfig": "endpoint",
    "CreateEndpoint": "endpoint",
    "UpdateEndpoint": "endpoint.rollout",
    "CreateInferenceComponent": "endpoint.components",
    "PutMetricAlarm": "endpoint.rollout.alarms (or endpoint.scaling)",
    "RegisterScalableTarget": "endpoint.scaling",
    "PutScalingPolicy": "endpoint.scaling",
    "PutScheduledAction": "endpoint.scaling.schedule",
    "CreateTrainingJob.RoleArn": "role",
    "CreateModel.ExecutionRoleArn": "role",
    "CreateTrainingJob.VpcConfig": "network",
    "CreateModel.VpcConfig": "network",
    "CreateTrainingJob.Tags": "tags",
    "CreateTransformJob.Tags": "tags",
    "CreateModel.Tags": "tags",
    "CreateEndpointConfig.Tags": "tags",
}


def refuse_malformed(call: ApiCall) -> None:
    """Refuse a request the service would refuse; a value that is only unknown is a warning, as lists age.

    Raises:
        ConfigError: what is wrong and which setting it comes from, one finding per line.
    """
    found = problems(call)
    unknown = [problem for problem in found if is_unknown_value(problem)]
    for problem in unknown:
        logger.warning("%s; sent all the same", with_setting(problem))
    wrong = [problem for problem in found if problem not in unknown]
    if call.operation == "CreateTrainingJob":
        wrong += sdk_script_mode_problems(call.request)
    if wrong:
        raise ConfigError("\n".join(with_setting(problem) for problem in wrong))


def with_setting(problem: str) -> str:
    """A problem with the setting that the refused value comes from, where one is known."""
    path = re.split(r":| key", problem, maxsplit=1)[0]
    known = [prefix for prefix in SETTINGS if f"{path}.".startswith((f"{prefix}.", f"{prefix}["))]
    return f"{problem}; change {SETTINGS[max(known, key=len)]}" if known else problem


def problems(call: ApiCall) -> list[str]:
    """Everything the service would refuse in a request; empty when it is well formed."""
    model = service_model(call.service)
    shape = model["operations"][call.operation]["input"]["shape"]
    return list(_check(model["shapes"], shape, call.request, call.operation))


def enum_problems(call: ApiCall) -> list[str]:
    """Only values that are not in a list of known ones: such lists age, so at run time these are warnings."""
    return [problem for problem in problems(call) if is_unknown_value(problem)]


def is_unknown_value(problem: str) -> bool:
    """Whether a problem is a value that is only in no list of known ones."""
    return "is none of" in problem


@functools.cache
def service_model(service: str) -> dict[str, Any]:
    """Botocore's service-2.json of a service."""
    package = importlib.util.find_spec("botocore")
    assert package is not None
    assert package.origin is not None
    versions = sorted((Path(package.origin).parent / "data" / service).iterdir())
    file = versions[-1] / "service-2.json.gz"
    if file.exists():
        return json.loads(gzip.decompress(file.read_bytes()))
    return json.loads((versions[-1] / "service-2.json").read_bytes())


def _check(shapes: dict[str, Any], name: str, value: Any, path: str) -> list[str]:
    shape = shapes[name]
    kind = shape["type"]
    if kind in TYPES and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{path}: {value!r} must be of type {kind}"]
    return _check_bounds(shape, value, path) + _check_members(shapes, shape, value, path)


def _check_members(shapes: dict[str, Any], shape: dict[str, Any], value: Any, path: str) -> list[str]:
    found: list[str] = []
    if shape["type"] == "structure":
        members = shape["members"]
        found += [f"{path}: {name} is missing" for name in shape.get("required", []) if name not in value]
        for name, item in value.items():
            if name in members:
                found += _check(shapes, members[name]["shape"], item, f"{path}.{name}")
            else:
                found.append(f"{path}: {name} is not a member; known: {', '.join(members)}")
    elif shape["type"] == "list":
        for index, item in enumerate(value):
            found += _check(shapes, shape["member"]["shape"], item, f"{path}[{index}]")
    elif shape["type"] == "map":
        for name, item in value.items():
            found += _check(shapes, shape["key"]["shape"], name, f"{path} key")
            found += _check(shapes, shape["value"]["shape"], item, f"{path}.{name}")
    return found


def _check_bounds(shape: dict[str, Any], value: Any, path: str) -> list[str]:
    found = []
    sized = isinstance(value, str | list | tuple | dict)
    if sized or isinstance(value, int | float):
        amount = len(value) if sized else value
        what = f"{len(value)} {'characters' if isinstance(value, str) else 'entries'}" if sized else f"{value}"
        if "min" in shape and amount < shape["min"]:
            found.append(f"{path}: {what} is below the minimum of {shape['min']}")
        if "max" in shape and amount > shape["max"]:
            found.append(f"{path}: {what} is above the maximum of {shape['max']}")
    if isinstance(value, str):
        if "enum" in shape and value not in shape["enum"]:
            found.append(f"{path}: {value!r} is none of the {len(shape['enum'])} known values")
        if "pattern" in shape and not _matches(shape["pattern"], value):
            found.append(f"{path}: {value!r} does not match {shape['pattern']}")
    return found


def _matches(pattern: str, value: str) -> bool:
    try:
        return re.fullmatch(in_python(pattern), value, re.DOTALL) is not None
    except re.error:
        return True  # another Java-only construct: the service decides


def in_python(pattern: str) -> str:
    """A pattern of the API's model as Python writes it."""
    for java, python in CHARACTER_CLASSES.items():
        pattern = pattern.replace(java, python)
    return pattern

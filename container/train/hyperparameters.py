"""Hyperparameters as nested configuration: `optimizer.learning_rate` is a field of a field, typed, or an error.

The platform knows flat names and strings alone, so nested configuration travels as dotted names.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")


class HyperparameterError(Exception):
    """A hyperparameter that a program does not know, or whose value it cannot use."""


def nest_hyperparameters(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested dictionaries: `{"optimizer.lr": 0.1}` becomes `{"optimizer": {"lr": 0.1}}`.

    Raises:
        HyperparameterError: a name is both a value and a group.
    """
    nested: dict[str, Any] = {}
    for name, value in flatten(hyperparameters):
        *groups, last = name.split(".")
        inner = nested
        for depth, group in enumerate(groups, start=1):
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise HyperparameterError(f"{'.'.join(groups[:depth])} is a value, and {name} asks for a group")
        if last in inner:
            raise HyperparameterError(f"{name} is given twice, or is both a value and a group")
        inner[last] = value
    return nested


def flatten(hyperparameters: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of each value that is no mapping."""
    for name, value in hyperparameters.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def build_config(config: type[Config], hyperparameters: Mapping[str, Any]) -> Config:
    """A dataclass, whose fields may be dataclasses, from decoded hyperparameters.

        @dataclass(frozen=True)
        class Optimizer:
            lr: float = 0.1

        @dataclass(frozen=True)
        class Settings:
            epochs: int = 10
            optimizer: Optimizer = Optimizer()

        settings = build_config(Settings, training_environment().hyperparameters)   # optimizer.lr, or lr alone

    Names may have `-` for `_`, and the last part is enough where it is the only one of its kind. Every field needs a
    default. Types are bool, int, float, str, a dataclass, and `dict[str, float]`, alone or in a union with `str`.

    Raises:
        HyperparameterError: an unknown name, with the nearest one; a value of another type; one name given twice.
    """
    kinds = dict(_leaves(config))
    values: dict[str, Any] = {}
    for given, value in flatten(hyperparameters):
        name, key = _resolve(given, kinds)
        if name in values and not (key and isinstance(values[name], dict)):
            raise HyperparameterError(f"{given!r} sets {name}, which is set already")
        if key:
            values.setdefault(name, {})[key] = _convert(given, value, float)
        else:
            values[name] = _convert(given, value, kinds[name])
    return _assemble(config, values, "")


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of every field that is no dataclass."""
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def _resolve(given: str, kinds: Mapping[str, Any]) -> tuple[str, str]:
    """The field that a name means, and, where that is a mapping, the key within it."""
    name = given.replace("-", "_")
    if name in kinds:
        return name, ""
    for field, kind in kinds.items():
        for spelled in (field, field.rpartition(".")[2]):
            if _takes_mapping(kind) and name.startswith(f"{spelled}."):
                return field, given[len(spelled) + 1 :]
    short = [field for field in kinds if field.rpartition(".")[2] == name]
    if len(short) == 1:
        return short[0], ""
    raise HyperparameterError(f"unknown hyperparameter {given!r}; {_suggestion(name, kinds)}")


def _suggestion(name: str, kinds: Mapping[str, Any]) -> str:
    spellings = {spelled: field for field in kinds for spelled in (field, field.rpartition(".")[2])}
    near = difflib.get_close_matches(name, spellings, n=1) or difflib.get_close_matches(
        name.rpartition(".")[2], spellings, n=1
    )
    return f"did you mean {spellings[near[0]]!r}?" if near else f"known are {', '.join(kinds)}"


def _takes_mapping(kind: Any) -> bool:
    return any(typing.get_origin(part) is dict for part in _alternatives(kind))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_ARTICLES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


def _convert(name: str, value: Any, kind: Any) -> Any:
    """The value as its field's type; numbers may arrive as strings, since SDK v2's tuner quotes twice."""
    scalar = next(part for part in (*_alternatives(kind), float) if part in _ARTICLES)
    try:
        if scalar is bool:
            return _BOOLEANS[str(value).lower()]
        converted = scalar(value)
        if scalar is int and float(value) != converted:
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError):
        raise HyperparameterError(f"{name}={value!r} is not {_ARTICLES[scalar]}") from None
    return converted


def _assemble(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    arguments = {}
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            arguments[name] = _assemble(kind, values, f"{prefix}{name}.")
        elif f"{prefix}{name}" in values:
            arguments[name] = values[f"{prefix}{name}"]
    return config(**arguments)

"""Reads `launcher.yaml` and `--set` into a `Config`, and remembers where each value came from."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from launcher.config import Config
from launcher.config.mistakes import explain, not_yaml
from launcher.errors import ConfigError

DEFAULT_FILE = Path("launcher.yaml")
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
Defaults = Callable[[str], Mapping[str, tuple[str, str]]]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Source:
    """The plain values of one or more files and options, with the origin of each."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted key -> `launcher.yaml:12`, `launcher.yaml:12 (AWS_REGION)` or `--set`."""


@dataclass(frozen=True)
class Settings:
    """The checked configuration, where it came from, and the directory its relative paths start at."""

    config: Config
    origins: Mapping[str, str]
    directory: Path


def load(
    path: Path | None,
    overrides: Iterable[str] = (),
    defaults: Defaults | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The configuration of a project.

    Args:
        path: the YAML file; None means `launcher.yaml` where there is one, else nothing but defaults.
        overrides: `section.key=value` texts; the value is read as YAML.
        defaults: from the region, dotted key -> (YAML text, origin), for keys that nothing else sets.
        environ: for `${VARIABLE:-default}`.

    Raises:
        ConfigError: the file is missing, not YAML, or says something that is not a setting.
    """
    environ = os.environ if environ is None else environ
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    source = read_file(path, environ) if path else Source()
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--set {item!r} has no '='; write it like --set training.instance_count=2")
        _override(source, key.strip(), text, "--set")
    region = str(source.values.get("region") or Config.model_fields["region"].default)
    for key, (text, origin) in (defaults(region) if defaults else {}).items():
        if _find(source.values, key) is None:
            _override(source, key, text, origin)
    try:
        config = Config.model_validate(source.values)
    except ValidationError as error:
        raise ConfigError(explain(error, source.origins)) from error
    return Settings(config, source.origins, path.parent if path else Path())


def unnamed_images(settings: Settings) -> list[str]:
    """Which of `training` and `serving` the project leaves to Slipway: it neither names an image nor builds its own."""
    own = ("uri", "repository", "tag", "dockerfile")
    return [
        kind for kind in ("training", "serving") if not any(f"images.{kind}.{key}" in settings.origins for key in own)
    ]


def read_file(path: Path, environ: Mapping[str, str]) -> Source:
    """The values of one file, its `${…}` replaced.

    Raises:
        ConfigError: the file is missing, is not YAML, or names an unset variable.
    """
    try:
        root = yaml.compose(path.read_text(), Loader=Loader)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; `python -m launcher init` writes one") from error
    except yaml.YAMLError as error:
        raise ConfigError(not_yaml(path, error)) from error
    source = Source()
    if root is None:
        return source
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}:1 must be a mapping such as 'name: demo', not a {root.tag.rpartition(':')[2]}")
    _Reader(path, environ, source).visit(root, "")
    source.values = Loader("").construct_document(root)
    return source


class _Reader:
    def __init__(self, path: Path, environ: Mapping[str, str], source: Source) -> None:
        self.path, self.environ, self.source = path, environ, source
        self.resolve = Loader("").resolve

    def visit(self, node: yaml.Node, key: str) -> None:
        """Replace variables below the node and note the line of every key."""
        where = f"{self.path}:{node.start_mark.line + 1}"
        if isinstance(node, yaml.ScalarNode):
            names = self._substitute(node, where)
            self.source.origins[key] = where + (f" ({', '.join(names)})" if names else "")
            return
        self.source.origins[key] = where
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.visit(item, f"{key}.{index}")
            return
        for name, value in node.value:
            child = f"{key}.{name.value}".lstrip(".")
            self.visit(value, child)
            self.source.origins[child] = self.source.origins[child].replace(
                where_of(self.path, value), where_of(self.path, name)
            )

    def _substitute(self, node: yaml.ScalarNode, where: str) -> list[str]:
        names = []

        def value(match: re.Match[str]) -> str:
            names.append(match[1])
            text = self.environ.get(match[1]) or match[2]
            if text is None:
                raise ConfigError(
                    f"{where}: the variable {match[1]} is not set; export it or write ${{{match[1]}:-default}}"
                )
            return text

        node.value = VARIABLE.sub(value, node.value)
        if names and node.style not in {"'", '"', "|", ">"}:
            node.tag = self.resolve(yaml.ScalarNode, node.value, (True, False))
        return names


def where_of(path: Path, node: yaml.Node) -> str:
    """`file:line` of a node."""
    return f"{path}:{node.start_mark.line + 1}"


def _find(values: Mapping[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _override(source: Source, key: str, text: str, origin: str) -> None:
    try:
        value = yaml.load(text, Loader=Loader) if text else ""  # a safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} {key}={text}: the value is not YAML; quote it") from error
    *parents, last = key.split(".")
    section = source.values
    for name in parents:
        if not isinstance(section.get(name), dict):
            # a channel may be written as its source alone: `train: ./data`, then --set training.channels.train.mode=…
            short = key.startswith("training.channels.") and isinstance(section.get(name), str)
            section[name] = {"source": section[name]} if short else {}
        section = section[name]
    section[last] = value
    source.origins[key] = origin

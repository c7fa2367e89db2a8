"""Verbs about the project itself: its files, its settings, what it needs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from launcher.commands.options import Options, common_options, load_settings, show


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), default=".")
@click.option(
    "--template",
    type=click.Choice(["images", "tables", "own"]),
    help="What the data are; own: launcher.yaml alone, for code that is there. Default: images, or own beside code.",
)
def init(directory: Path, template: str | None) -> None:
    """Write a project into DIRECTORY that trains, serves and passes its own test at once; or adopt what lies there."""
    from launcher.scaffold import adopt_project, has_code, write_project

    own = template == "own" or (template is None and has_code(directory))
    for path in adopt_project(directory) if own else write_project(directory, template or "images"):
        click.echo(f"-> {path}")
    enter = "" if directory == Path() else f"cd {directory} && "
    click.echo(f"next: {enter}python -m launcher train --local")


@click.group()
def config() -> None:
    """The configuration: what is set, where it comes from, what there is."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say which file, line, variable or option set each value.")
@common_options
def show_config(options: Options, origin: bool) -> None:
    """Print every setting with its value."""
    settings = load_settings(replace(options, dry_run=True))  # with --local: nothing needs to run for it
    values = dict(flat("", settings.config.model_dump(mode="json")))
    if options.json and not origin:
        return show(options, settings.config.model_dump(mode="json"), [])
    origins = {key: origin_of(key, settings.origins) for key in values}
    if options.json:
        return show(options, {key: {"value": values[key], "origin": origins[key]} for key in values}, [])
    width = max(len(key) for key in values) + 1
    lines = [f"{key + ':':<{width}} {json.dumps(value)}" for key, value in values.items()]
    if origin:
        widest = min(max(len(line) for line in lines), 80)
        lines = [f"{line:<{widest}}  # {place}" for line, place in zip(lines, origins.values(), strict=True)]
    return show(options, None, lines)


@config.command()
def schema() -> None:
    """Print the JSON Schema of launcher.yaml, for editors."""
    from launcher.config import Config

    click.echo(
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}, indent=2)
    )


def flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    """Dotted keys of nested mappings; an empty mapping is a value."""
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [pair for key, item in value.items() for pair in flat(f"{prefix}.{key}".lstrip("."), item)]


def origin_of(key: str, origins: Any) -> str:
    """Where a value was set: its own origin, or that of a section given as one value (`spot: true`)."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        place = origins.get(".".join(parts[:length]))
        if place and (
            length == len(parts) or not any(name.startswith(".".join(parts[:length]) + ".") for name in origins)
        ):
            return place
    return "default"

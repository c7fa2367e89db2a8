"""`transform --probe`: asks the model's own container, started here, for what the configuration leaves open."""

import os
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.commands.options import Options, command, local_server, open_project, show
from launcher.console import table
from launcher.errors import JobFailed

if TYPE_CHECKING:
    from launcher.check.target import Target
    from launcher.settings import Settings


def show_probe(options: Options, settings: "Settings") -> None:
    """Print what the container proposes, with where each value comes from; no job is started.

    Raises:
        ConfigError: the image is not on this machine, or there is no model.
        JobFailed: the container does not start.
    """
    from launcher import data
    from launcher.check.probe import probe
    from launcher.check.target import CheckFailed

    project = open_project(settings, options)
    context = project.context()
    target = target_of(options, settings)
    model = project.served_model(context, settings.config.transform.model or "")
    environment = {**settings.config.endpoint.environment, **settings.config.transform.environment}
    if not options.json:
        click.echo(f"   starting {target.name} with {model.uri} on this machine")
    with tempfile.TemporaryDirectory() as folder:
        data.download(project.aws, model.uri, Path(folder) / "archive", project.progress)
        archive = Path(folder) / "archive" / model.uri.rpartition("/")[2]
        data.unpack(archive, Path(folder) / "model")
        try:
            found = probe(target, Path(folder) / "model", environment, Path(folder) / "bench")
        except CheckFailed as failure:
            raise JobFailed(str(failure)) from failure
    origin = f"{target.name} ({os.cpu_count()} CPUs here)"
    rows = [list(row) for row in found.proposals(origin)]
    asked_for = settings.config.transform.model if settings.origins.get("transform.model") == "--set" else None
    named = [shlex.quote(asked_for)] if asked_for else []
    given = " ".join([*named, *(f"--set {setting}={shlex.quote(value)}" for setting, value, _ in rows if value)])
    result = {**asdict(found), "image": target.name, "proposals": {row[0]: row[1] for row in rows if row[1]}}
    note = "   a job that leaves these out asks its own container, on its own machine, when it starts"
    lines = [table(rows, ["SETTING", "VALUE", "FROM"]), note, f"next: {command('transform', given, options)}"]
    return show(options, result, lines)


def target_of(options: Options, settings: "Settings") -> "Target":
    """The serving image on this machine; our own code where the local SageMaker runs processes."""
    from launcher.check.command import open_target
    from launcher.check.process_target import ProcessTarget
    from launcher.images.build import local_reference

    if options.local and local_server("status").runtime == "process":
        python_path = os.environ.get("PYTHONPATH", "")
        return ProcessTarget((sys.executable, "-m", "container"), {"PYTHONPATH": python_path} if python_path else {})
    image = settings.config.images.serving
    return open_target(image.uri or local_reference(image))

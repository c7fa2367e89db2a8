"""`transform --probe` and `deploy --probe`: a model's own container, started here, says what nobody else knows."""

import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from container import contract
from launcher.commands.options import LOCAL_HOME, Options, command, local_server, open_project, show
from launcher.console import size_text, table
from launcher.errors import ConfigError, JobFailed, LauncherError

if TYPE_CHECKING:
    from launcher.check.target import Target
    from launcher.jobs.model import ServedModel
    from launcher.load_times import Entry
    from launcher.project import Project
    from launcher.settings import Settings

logger = logging.getLogger(__name__)

UNASKED_BYTES = 2_000_000_000  # larger archives are fetched and started only when somebody asks for it


def show_probe(options: Options, settings: "Settings") -> None:
    """Print what the container proposes for a batch job; no job is started.

    Raises:
        ConfigError: the image is not on this machine, or there is no model.
        JobFailed: the container does not start.
    """
    project = open_project(settings, options)
    target = target_of(options, settings)
    model = project.served_model(project.context(), settings.config.transform.model or "")
    if not options.json:
        click.echo(f"   starting {target.name} with {model.uri} on this machine")
    found = ask(project, target, model, batch_environment(settings), "transform --probe")
    proposals = proposals_of(settings, found)
    asked_for = settings.config.transform.model if settings.origins.get("transform.model") == "--set" else None
    named = [shlex.quote(asked_for)] if asked_for else []
    given = " ".join([*named, *(f"--set {setting}={shlex.quote(value)}" for setting, value in proposals.items())])
    origin = f"{contract.EXECUTION_PARAMETERS_PATH} of {target.name} ({os.cpu_count()} CPUs here)"
    rows = [[setting, value, origin] for setting, value in proposals.items()]
    note = "   a job that leaves these out asks its own container, on its own machine, when it starts"
    lines = [table(rows, ["SETTING", "VALUE", "FROM"]) if rows else "   the container proposes nothing", note]
    result = {"image": target.name, **result_of(found), "proposals": proposals}
    return show(options, result, [*lines, f"next: {command('transform', given, options)}"])


def propose(options: Options, settings: "Settings", project: "Project") -> None:
    """Tell what the container proposes where the configuration leaves it open.

    It is asked here, once for each archive, where the image is on this machine; a job on this machine asks it anyway.
    """
    section = settings.config.transform
    named = {"max_concurrent": section.max_concurrent, "strategy": section.strategy}
    left_open = [name for name, value in {**named, "max_payload_mb": section.max_payload_mb}.items() if value is None]
    if not left_open:
        return
    found = None if options.local else _asked_before_or_now(options, settings, project)
    proposals = proposals_of(settings, found) if found else {}
    for setting, value in proposals.items():
        logger.info("   %s: not set; the container proposes %s", setting, value)
    if not proposals:
        names = ", ".join(left_open)
        logger.info("   transform.%s: the container says when the job starts; --probe asks it here", names)


def _asked_before_or_now(options: Options, settings: "Settings", project: "Project") -> "Entry | None":
    from launcher import load_times

    model = project.served_model(project.context(), settings.config.transform.model or "")
    found = load_times.known(LOCAL_HOME, model.etag)
    if found and found.execution_parameters is not None:
        return found
    if model.size_bytes is None or model.size_bytes > UNASKED_BYTES:
        return None
    try:
        target = target_of(options, settings)
    except ConfigError:  # the image is not here
        return None
    logger.info("   asking %s with %s here, once", target.name, model.uri)
    try:
        return ask(project, target, model, batch_environment(settings), "transform")
    except LauncherError as error:  # what fails here may work on its own machine, with a GPU for instance
        logger.warning("it cannot be asked here: %s", error)
        return None


def show_load_times(options: Options, settings: "Settings") -> None:
    """Start each of the endpoint's models here and note how long it loads; nothing is deployed.

    Raises:
        ConfigError: the image is not on this machine, or there is no model.
        JobFailed: the container does not start.
    """
    from launcher.jobs.endpoint import models_of
    from launcher.jobs.timeouts import timeouts

    section = settings.config.endpoint
    if section.multi_model:
        raise ConfigError("a multi-model endpoint loads its models when they are asked for; no limit waits for them")
    project = open_project(settings, options)
    context, results, lines = project.context(), {}, []
    for name, model_text in models_of(section).items():
        model = project.served_model(context, model_text)
        target = target_of(options, settings, image_of(settings, name))
        if not options.json:
            click.echo(f"   starting {target.name} with {model.uri} on this machine")
        found = ask(project, target, model, endpoint_environment(settings, name), "deploy --probe")
        limits = timeouts(section, project.served_model(context, model_text))
        results[name] = {"image": target.name, "model": model.uri, **result_of(found)} | {
            "startup_timeout": limits.startup.seconds,
            "download_timeout": limits.download.seconds,
        }
        lines += [f"-> {name}: healthy after {found.measured.load_seconds:.1f} s", *(f"   {x}" for x in limits.lines())]
    return show(options, results, [*lines, f"next: {command('deploy', section.model or '', options)}"])


def ask(
    project: "Project", target: "Target", model: "ServedModel", environment: Mapping[str, str], verb: str
) -> "Entry":
    """Fetch and unpack an archive, start its container, ask, and note the answer for the next time.

    Raises:
        JobFailed: the container does not start, or its answer is none.
    """
    from launcher import data, load_times
    from launcher.check.probe import probe
    from launcher.check.target import CheckFailed
    from launcher.jobs.model import Measured

    with tempfile.TemporaryDirectory() as folder:
        data.download(project.aws, model.uri, Path(folder) / "archive", project.progress)
        started = time.monotonic()
        data.unpack(Path(folder) / "archive" / model.uri.rpartition("/")[2], Path(folder) / "model")
        unpacked = time.monotonic() - started
        try:
            found = probe(target, Path(folder) / "model", environment, Path(folder) / "bench")
        except CheckFailed as failure:
            raise JobFailed(str(failure)) from failure
    measured = Measured(found.load_seconds, unpacked, load_times.now_by(verb))
    entry = load_times.Entry(measured, found.execution_parameters if contract.BATCH in environment else None)
    load_times.note(LOCAL_HOME, model.etag, entry)
    size = size_text(model.size_bytes or 0)
    logger.info("   %s, unpacked in %.1f s, healthy after %.1f s", size, unpacked, found.load_seconds)
    return entry


def proposals_of(settings: "Settings", entry: "Entry") -> dict[str, str]:
    """Settings that the container proposes and the configuration leaves open."""
    from launcher.check.probe import settings_of

    given = settings.config.transform.model_dump(exclude_none=True)
    found = settings_of(entry.execution_parameters or {})
    return {setting: value for setting, value in found.items() if setting.removeprefix("transform.") not in given}


def result_of(entry: "Entry") -> dict[str, Any]:
    """For --json."""
    return {**asdict(entry.measured), "execution_parameters": entry.execution_parameters}


def batch_environment(settings: "Settings") -> dict[str, str]:
    """Variables of a batch job's container."""
    return {contract.BATCH: "true", **settings.config.endpoint.environment, **settings.config.transform.environment}


def endpoint_environment(settings: "Settings", name: str) -> dict[str, str]:
    """Variables of an endpoint's container, its component's or its own among them."""
    section = settings.config.endpoint
    own = {item.name: item.environment for item in section.containers}
    own |= {item.name: item.environment for item in section.components}
    return {**section.environment, **own.get(name, {})}


def image_of(settings: "Settings", name: str) -> str | None:
    """The image of one of several containers, where it has one of its own."""
    return next((item.image for item in settings.config.endpoint.containers if item.name == name), None)


def target_of(options: Options, settings: "Settings", image: str | None = None) -> "Target":
    """The serving image, or another, on this machine; our own code where the local SageMaker runs processes.

    Raises:
        ConfigError: the image is not here.
    """
    from launcher.check.command import open_target
    from launcher.check.process_target import ProcessTarget
    from launcher.images.build import local_reference

    if options.local and local_server("status").runtime == "process":
        python_path = os.environ.get("PYTHONPATH", "")
        return ProcessTarget((sys.executable, "-m", "container"), {"PYTHONPATH": python_path} if python_path else {})
    serving = settings.config.images.serving
    return open_target(image or serving.uri or local_reference(serving))

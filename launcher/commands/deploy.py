"""The verbs `deploy`, `rollback` and `delete`."""

import shlex
import time
from typing import TYPE_CHECKING

import click

from launcher.commands.options import (
    LOCAL_HOME,
    Options,
    command,
    common_options,
    load_settings,
    open_project,
    refuse_without_project,
    show,
    show_call,
    show_calls,
    tell_price,
)

if TYPE_CHECKING:
    from launcher.settings import Settings


@click.command()
@click.argument("model", required=False)
@click.option("--ttl", metavar="DURATION", help="`endpoints reap` deletes it when it is older (endpoint.ttl).")
@click.option("--probe", is_flag=True, help="Start its containers here, see how long they load; deploys nothing.")
@common_options
def deploy(options: Options, model: str | None, ttl: str | None, probe: bool) -> None:
    """Create or update the endpoint so that it serves MODEL: a training job, an S3 URI or a local model.tar.gz."""
    refuse_without_project(options)
    settings = load_settings(options, {"endpoint.model": model, "endpoint.ttl": ttl})
    if options.dry_run:
        return show_calls(options, "deploy", settings)
    if probe:
        from launcher.commands.probe import show_load_times

        return show_load_times(options, settings)
    from launcher import load_times
    from launcher.deployment import deploy as deploying
    from launcher.jobs.model import Measured

    tell_price(options, "deploy", settings)
    project = open_project(settings, options)
    planned = deploying.plan(project)
    if not options.json:
        click.echo("\n".join(f"   {line}" for line in (*planned.steps, *planned.notes)))
    started = time.monotonic()
    deploying.apply(project, planned)
    (deploying.note if options.no_wait else deploying.finish)(project, planned)
    if options.local and planned.starts and not options.no_wait and not settings.config.endpoint.rollout:
        measured = Measured(time.monotonic() - started, 0.0, load_times.now_by("deploy --local"))
        for etag in planned.etags:
            load_times.note(LOCAL_HOME, etag, load_times.Entry(measured))
    changed = [{"action": step.action, "operation": step.call.operation, "name": step.name} for step in planned.steps]
    result = {"name": planned.name, "config": planned.config_name, "previous": planned.previous, "steps": changed}
    done = f"-> endpoint {planned.name} is in service"
    if options.no_wait:
        done = f"-> endpoint {planned.name} is not waited for: `{command('attach', planned.name, options)}` does"
    return show(options, {**result, "notes": planned.notes}, [done, f"next: {_next(options, settings)}"])


def _next(options: Options, settings: "Settings") -> str:
    section = settings.config.endpoint
    if options.no_wait and (section.scaling or section.components):
        return command("deploy", "", options) + "   # again: scaling and components follow once it serves"
    return command("invoke", sample_request(settings), options)


def sample_request(settings: "Settings") -> str:
    """What `invoke` can send at once: a file of the project's, and the endpoint where `--set` names it."""
    from launcher.invoke import CONTENT_TYPES
    from launcher.jobs.common import is_local_path
    from launcher.jobs.endpoint import endpoint_name

    batch = settings.config.transform.input
    folders = [settings.directory.glob("sample.*")]
    if batch and is_local_path(batch):
        folders.append((settings.directory / batch).rglob("*"))
    found = (str(path) for paths in folders for path in sorted(paths) if path.suffix in CONTENT_TYPES)
    named_here = "--set" in (settings.origins.get("name"), settings.origins.get("endpoint.name"))
    section = settings.config.endpoint
    more = f" --endpoint {endpoint_name(settings.config)}" if named_here else ""
    more += f" --component {section.components[0].name}" if len(section.components) > 1 else ""
    if section.containers and section.container_mode == "Direct":
        more += f" --target-container {section.containers[0].name}"
    more += " --target-model NAME" if section.multi_model else ""
    return shlex.quote(next(found, "FILE")) + more


@click.command()
@click.argument("endpoint", required=False)
@common_options
def rollback(options: Options, endpoint: str | None) -> None:
    """Let ENDPOINT (default: the project's) serve again what it served before its last update, or before this one."""
    from launcher.jobs.endpoint import endpoint_name

    settings = load_settings(options)
    name = endpoint or endpoint_name(settings.config)
    if options.dry_run:
        return show_call(options, "UpdateEndpoint", {"EndpointName": name})
    from launcher.deployment import rollback as going_back

    project = open_project(settings, options)
    back = going_back.begin(project, name, wait=not options.no_wait)
    (going_back.note if options.no_wait else going_back.finish)(project, back)
    result = {"name": name, "config": back.config_name, "previous": back.previous}
    done = f"-> endpoint {name} serves {back.config_name} again; `rollback` once more returns to {back.previous}"
    if options.no_wait:
        done = f"-> endpoint {name} goes back to {back.config_name}: `{command('attach', name, options)}` waits for it"
    return show(options, result, [done])


@click.command()
@click.argument("endpoint")
@common_options
def delete(options: Options, endpoint: str) -> None:
    """Delete ENDPOINT and its configuration; models stay, they cost nothing."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "DeleteEndpoint", {"EndpointName": endpoint})
    from launcher.deployment.delete import delete as delete_endpoint

    delete_endpoint(open_project(settings, options), endpoint, wait=not options.no_wait)
    verb = "deleting" if options.no_wait else "deleted"
    return show(options, {verb: endpoint}, [f"-> {verb} the endpoint {endpoint}"])

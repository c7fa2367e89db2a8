"""Verbs about endpoints."""

import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands.options import (
    Options,
    command,
    common_options,
    load_settings,
    open_project,
    show,
    show_call,
    show_calls,
    show_table,
    tell_price,
)
from launcher.errors import ConfigError

if TYPE_CHECKING:
    from launcher.invoke import Request
    from launcher.project import Project
    from launcher.settings import Settings


@click.command()
@click.argument("model", required=False)
@common_options
def deploy(options: Options, model: str | None) -> None:
    """Create or update the endpoint so that it serves MODEL: a training job, an S3 URI or a local model.tar.gz."""
    settings = load_settings(options, {"endpoint.model": model})
    if options.dry_run:
        return show_calls(options, "deploy", settings)
    from launcher import deployment

    tell_price(options, "deploy", settings)
    project = open_project(settings, options)
    planned = deployment.plan(project)
    if not options.json:
        click.echo("\n".join(f"   {step}" for step in planned.steps))
        rollout = deployment.rollout_text(project, planned)
        if rollout:
            click.echo(f"   {rollout}")
    deployment.apply(project, planned)
    (deployment.note if options.no_wait else deployment.finish)(project, planned)
    changed = [{"action": step.action, "operation": step.call.operation} for step in planned.steps]
    section = settings.config.endpoint
    later = options.no_wait and (section.scaling or section.components)
    next_line = command("deploy", "", options) + "   # again: scaling and components follow once it serves"
    return show(
        options,
        {"name": planned.name, "config": planned.config_name, "previous": planned.previous, "steps": changed},
        [
            f"-> endpoint {planned.name}" + ("" if options.no_wait else " is in service"),
            f"next: {next_line if later else command('invoke', sample_request(settings), options)}",
        ],
    )


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
    endpoint = f" --endpoint {endpoint_name(settings.config)}" if named_here else ""
    components = settings.config.endpoint.components
    endpoint += f" --component {components[0].name}" if len(components) > 1 else ""
    return shlex.quote(next(found, "FILE")) + endpoint


@click.command()
@click.argument("endpoint", required=False)
@common_options
def rollback(options: Options, endpoint: str | None) -> None:
    """Let ENDPOINT (default: the project's) serve again what it served before its last update."""
    from launcher.jobs.endpoint import endpoint_name

    settings = load_settings(options)
    name = endpoint or endpoint_name(settings.config)
    if options.dry_run:
        return show_call(options, "UpdateEndpoint", {"EndpointName": name})
    from launcher import deployment

    project = open_project(settings, options)
    planned = deployment.rollback(project, name)
    (deployment.note if options.no_wait else deployment.finish)(project, planned)
    result = {"name": name, "config": planned.config_name, "previous": planned.previous}
    return show(options, result, [f"-> endpoint {name} serves {planned.config_name} again"])


@click.command()
@click.option("--idle", metavar="DURATION", help="Also those without an invocation for so long, such as 24h.")
@common_options
def reap(options: Options, idle: str | None) -> None:
    """Delete this project's endpoints that are past their `ttl`, or idle; --dry-run lists them only."""
    settings = load_settings(replace(options, dry_run=False))  # what would be deleted, only the account knows
    from launcher import deployment

    limit = idle_limit(idle)
    project = open_project(settings, options)
    found = deployment.reapable(project, limit, datetime.now(UTC))
    verb = "would delete" if options.dry_run else "deleted"
    for item in found if not options.dry_run else []:
        deployment.delete(project, item.name, wait=not options.no_wait)
    lines = [f"-> {verb} {item.name}: {item.reason}" for item in found]
    return show(options, [asdict(item) for item in found], lines or ["-> nothing to delete"])


def idle_limit(text: str | None) -> timedelta | None:
    """The duration of `--idle`.

    Raises:
        ConfigError: it is none.
    """
    from launcher.config.values import parse_duration

    try:
        return timedelta(seconds=int(str(parse_duration(text)))) if text else None
    except ValueError as error:
        raise ConfigError(f"--idle: {error}") from error


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--endpoint", help="Its name (default: the project's).")
@click.option("--content-type", help="Default: by the file's ending.")
@click.option("--accept", help="Content type of the answer.")
@click.option("--target-variant", help="Ask this variant instead of the one the weights choose.")
@click.option("--target-model", help="Archive below the prefix of a multi-model endpoint.")
@click.option("--target-container", help="One of several containers in direct mode.")
@click.option("--component", help="One of the endpoint's inference components, as launcher.yaml names it.")
@click.option("--session-id", help="NEW_SESSION, or the id that its answer named.")
@click.option("--stream", is_flag=True, help="Print the answer's parts as they come.")
@click.option("--timeout", default="15m", show_default=True, help="How long to wait for an asynchronous answer.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="Send it so many times and measure.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, help="Requests under way at once.")
@common_options
def invoke(options: Options, file: Path, **given: Any) -> None:
    """Send FILE to the endpoint and print the answer; "-" reads standard input."""
    from launcher.console import show_log
    from launcher.jobs.endpoint import endpoint_name

    show_log(sys.stderr)  # standard output is the answer's, byte by byte
    settings = load_settings(options)
    name = given["endpoint"] or endpoint_name(settings.config)
    asynchronous = settings.config.endpoint.asynchronous is not None
    if options.dry_run:
        operation = "InvokeEndpointAsync" if asynchronous else "InvokeEndpoint"
        return show_call(options, operation, {"EndpointName": name}, "sagemaker-runtime")
    from launcher import invoke as invoking

    targets = {key: given[key] for key in ("target_variant", "target_model", "target_container", "session_id")}
    targets["component"] = component_asked(settings, name, given["component"])
    content_type = given["content_type"] or invoking.content_type_of(file)
    request = invoking.Request(name, read_body(file), content_type, given["accept"], **targets)
    project = open_project(settings, options)
    if asynchronous:
        return invoke_queued(options, project, request, given["timeout"])
    if given["repeat"] > 1:
        measured = asdict(invoking.measure(project.aws, request, given["repeat"], given["concurrency"]))
        return show(options, measured, [measurement_text(measured)])
    if given["stream"]:
        return write_bytes(invoking.stream(project.aws, request))
    answer = invoking.invoke(project.aws, request)
    if options.json:
        result = {"body": answer.body.decode("utf-8", "replace"), "content_type": answer.content_type}
        more = {"variant": answer.variant, "seconds": round(answer.seconds, 4), "session_id": answer.session_id}
        return show(options, {**result, **more}, [])
    return write_bytes([answer.body])


def component_asked(settings: "Settings", endpoint: str, asked: str | None) -> str | None:
    """InferenceComponentName of a component: the one asked for, or the only one that there is.

    Raises:
        ConfigError: the endpoint has several, and none was named.
    """
    from launcher.jobs.endpoint import component_name, endpoint_name

    components = [item.name for item in settings.config.endpoint.components]
    if endpoint != endpoint_name(settings.config):
        return asked  # of another project: the API's own name
    if components and asked is None and len(components) > 1:
        raise ConfigError(f"the endpoint has several components; say which: --component {' or '.join(components)}")
    chosen = asked or next(iter(components), None)
    return component_name(settings.config, chosen) if chosen else None


def invoke_queued(options: Options, project: "Project", request: "Request", timeout: str) -> None:
    """Send a request to an asynchronous endpoint and print where the answer lies, or the answer."""
    from launcher.config.values import parse_duration
    from launcher.invoke import invoke_async
    from launcher.jobs.common import project_uri

    try:
        seconds = None if options.no_wait else float(str(parse_duration(timeout)))
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}") from error
    folder = project_uri(project.config, project.context(), "async", request.endpoint, "input")
    location, answer = invoke_async(project.aws, request, folder, seconds)
    if answer is None or options.json:
        body = None if answer is None else answer.decode("utf-8", "replace")
        return show(options, {"output": location, "body": body}, [f"-> queued; the answer will lie at {location}"])
    return write_bytes([answer])


def write_bytes(parts: Iterable[bytes]) -> None:
    """Print an answer as it is, part by part, and end its last line."""
    sys.stdout.flush()
    last = b""
    for part in parts:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        last = part or last
    if not last.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


@click.group()
def models() -> None:
    """The archives below a multi-model endpoint's prefix (endpoint.model)."""


@models.command("ls")
@common_options
def list_models(options: Options) -> None:
    """List them; `invoke --target-model NAME` asks one."""
    settings = load_settings(options)
    prefix = models_prefix(settings)
    if options.dry_run:
        return show_call(options, "ListObjectsV2", {"Prefix": prefix}, "s3")
    from launcher import data
    from launcher.jobs.api import split_s3_uri
    from launcher.project import size_text

    base = len(split_s3_uri(prefix)[1])
    found = [item for item in data.objects(open_project(settings, options).aws, prefix) if item["Size"]]
    return show_table(options, [[item["Key"][base:], size_text(item["Size"])] for item in found], ["NAME", "SIZE"])


@models.command("add")
@click.argument("name")
@click.argument("archive", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@common_options
def add_model(options: Options, name: str, archive: Path) -> None:
    """Put ARCHIVE there as NAME; the endpoint loads it when it is first asked for."""
    settings = load_settings(options)
    target = models_prefix(settings) + name
    if options.dry_run:
        return show_call(options, "PutObject", {"Key": target}, "s3")
    from launcher import data

    project = open_project(settings, options)
    data.upload(project.aws, archive, target, project.progress)
    next_line = f"next: {command('invoke', f'FILE --target-model {name}', options)}"
    return show(options, {"model": target}, [f"-> {target}", next_line])


@models.command("rm")
@click.argument("name")
@common_options
def remove_model(options: Options, name: str) -> None:
    """Remove NAME; an endpoint that has loaded it may serve it until its memory is needed."""
    settings = load_settings(options)
    from launcher.jobs.api import split_s3_uri

    bucket, key = split_s3_uri(models_prefix(settings) + name)
    if options.dry_run:
        return show_call(options, "DeleteObject", {"Bucket": bucket, "Key": key}, "s3")
    open_project(settings, options).aws.call("s3", "DeleteObject", Bucket=bucket, Key=key)
    return show(options, {"removed": name}, [f"-> removed {name}"])


def models_prefix(settings: "Settings") -> str:
    """The prefix of a multi-model endpoint, ending in a slash.

    Raises:
        ConfigError: the project's endpoint is of another kind.
    """
    endpoint = settings.config.endpoint
    if not endpoint.multi_model or not (endpoint.model or "").startswith("s3://"):
        raise ConfigError(
            "this is for multi-model endpoints: set endpoint.multi_model: true and endpoint.model: s3://…/"
        )
    return f"{endpoint.model}".rstrip("/") + "/"


@click.command()
@click.option("--idle", metavar="DURATION", help="Only those without an invocation for so long, such as 24h.")
@common_options
def endpoints(options: Options, idle: str | None) -> None:
    """List the endpoints of the account."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListEndpoints", {})
    project = open_project(settings, options)
    limit = idle_limit(idle)
    aws = project.aws
    found = aws.call("sagemaker", "ListEndpoints", SortBy="CreationTime", SortOrder="Descending")["Endpoints"]
    if limit:
        from launcher import deployment

        names = deployment.idle_endpoints(project, limit, datetime.now(UTC))
        found = [item for item in found if item["EndpointName"] in names]
    rows = [[item["EndpointName"], item["EndpointStatus"], f"{item['CreationTime']:%Y-%m-%d %H:%M}"] for item in found]
    return show_table(options, rows, ["NAME", "STATUS", "CREATED"])


@click.command()
@click.argument("endpoint")
@common_options
def delete(options: Options, endpoint: str) -> None:
    """Delete ENDPOINT and its configuration; models stay, they cost nothing."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "DeleteEndpoint", {"EndpointName": endpoint})
    from launcher import deployment

    deployment.delete(open_project(settings, options), endpoint, wait=not options.no_wait)
    return show(options, {"deleted": endpoint}, [f"-> deleted the endpoint {endpoint}"])


def measurement_text(measured: dict[str, Any]) -> str:
    """Latencies and throughput in one line."""
    return (
        "-> {requests} requests, {errors} errors, {requests_per_second:.1f}/s, "
        "p50 {p50_ms:.1f} ms, p90 {p90_ms:.1f} ms, p99 {p99_ms:.1f} ms, max {max_ms:.1f} ms"
    ).format(**measured)


def read_body(file: Path) -> bytes:
    """The file's bytes, or standard input's for "-".

    Raises:
        ConfigError: it cannot be read.
    """
    if str(file) == "-":
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error

"""Verbs about endpoints."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

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
    deployment.apply(project, planned)
    if not options.no_wait:
        deployment.finish(project, planned)
    changed = [{"action": step.action, "operation": step.call.operation} for step in planned.steps]
    return show(
        options,
        {"name": planned.name, "config": planned.config_name, "previous": planned.previous, "steps": changed},
        [
            f"-> endpoint {planned.name}" + ("" if options.no_wait else " is in service"),
            f"next: {command('invoke', 'FILE', options)}",
        ],
    )


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
    if not options.no_wait:
        deployment.finish(project, planned)
    result = {"name": name, "config": planned.config_name, "previous": planned.previous}
    return show(options, result, [f"-> endpoint {name} serves {planned.config_name} again"])


@click.command()
@click.option("--idle", metavar="DURATION", help="Also those without an invocation for so long, such as 24h.")
@common_options
def reap(options: Options, idle: str | None) -> None:
    """Delete this project's endpoints that are past their `ttl`, or idle; --dry-run lists them only."""
    settings = load_settings(options)
    from launcher import deployment
    from launcher.config import parse_duration

    try:
        limit = timedelta(seconds=int(str(parse_duration(idle)))) if idle else None
    except ValueError as error:
        raise ConfigError(f"--idle: {error}") from error
    project = open_project(settings, options)
    found = deployment.reapable(project, limit, datetime.now(UTC))
    verb = "would delete" if options.dry_run else "deleted"
    for item in found if not options.dry_run else []:
        deployment.delete(project, item.name, wait=not options.no_wait)
    lines = [f"-> {verb} {item.name}: {item.reason}" for item in found]
    return show(options, [asdict(item) for item in found], lines or ["-> nothing to delete"])


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--endpoint", help="Its name (default: the project's).")
@click.option("--content-type", help="Default: by the file's ending.")
@click.option("--accept", help="Content type of the answer.")
@click.option("--target-variant", help="Ask this variant instead of the one the weights choose.")
@click.option("--target-model", help="Archive below the prefix of a multi-model endpoint.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="Send it so many times and measure.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, help="Requests under way at once.")
@common_options
def invoke(  # noqa: PLR0913, PLR0917  # one argument per option
    options: Options,
    file: Path,
    endpoint: str | None,
    content_type: str | None,
    accept: str | None,
    target_variant: str | None,
    target_model: str | None,
    repeat: int,
    concurrency: int,
) -> None:
    """Send FILE to the endpoint and print the answer; "-" reads standard input."""
    from launcher.jobs.endpoint import endpoint_name

    settings = load_settings(options)
    name = endpoint or endpoint_name(settings.config)
    body = read_body(file)
    if options.dry_run:
        request = {"EndpointName": name, "ContentType": content_type or "by the file's ending", "Body": str(file)}
        return show(
            options,
            [{"service": "sagemaker-runtime", "operation": "InvokeEndpoint", "request": request}],
            [json.dumps(request, indent=2)],
        )
    from launcher import invoke as invoking

    kind = content_type or invoking.content_type_of(file)
    request_value = invoking.Request(name, body, kind, accept, target_variant, target_model)
    aws = open_project(settings, options).aws
    if repeat > 1:
        measured = invoking.measure(aws, request_value, repeat, concurrency)
        return show(options, asdict(measured), [measurement_text(asdict(measured))])
    answer = invoking.invoke(aws, request_value)
    if options.json:
        result = {"body": answer.body.decode("utf-8", "replace"), "content_type": answer.content_type}
        return show(options, {**result, "variant": answer.variant, "seconds": round(answer.seconds, 4)}, [])
    sys.stdout.flush()
    sys.stdout.buffer.write(answer.body + (b"" if answer.body.endswith(b"\n") else b"\n"))
    sys.stdout.buffer.flush()
    return None


@click.command()
@common_options
def endpoints(options: Options) -> None:
    """List the endpoints of the account."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListEndpoints", {})
    aws = open_project(settings, options).aws
    found = aws.call("sagemaker", "ListEndpoints", SortBy="CreationTime", SortOrder="Descending")["Endpoints"]
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

"""The verbs about all endpoints of an account, and the archives of a multi-model endpoint."""

import shlex
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.commands.options import (
    Options,
    command,
    common_options,
    load_settings,
    open_project,
    show,
    show_call,
    show_table,
)
from launcher.errors import AwsRefused, ConfigError, TimedOut

if TYPE_CHECKING:
    from launcher.settings import Settings


class ListedByDefault(click.Group):
    """A group whose first verb, `ls`, may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Click's own, with `ls` put in where no verb stands."""
        asks_for_help = bool(args) and args[0] in ctx.help_option_names
        if not asks_for_help and (not args or args[0].startswith("-")):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


@click.group(cls=ListedByDefault)
def endpoints() -> None:
    """All endpoints of the account: ls (the default), reap; and the models of a multi-model endpoint."""


@endpoints.command("ls")
@click.option("--idle", metavar="DURATION", help="Only those without an invocation for so long, such as 24h.")
@common_options
def list_endpoints(options: Options, idle: str | None) -> None:
    """List the endpoints of the account."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListEndpoints", {})
    limit = idle_limit(idle)
    project = open_project(settings, options)
    found = list(project.aws.listed("ListEndpoints", "Endpoints", SortBy="CreationTime", SortOrder="Descending"))
    if limit:
        from launcher.deployment.idle import idle_endpoints

        found = idle_endpoints(project, found, limit, datetime.now(UTC))
    rows = [[item["EndpointName"], item["EndpointStatus"], f"{item['CreationTime']:%Y-%m-%d %H:%M}"] for item in found]
    return show_table(options, rows, ["NAME", "STATUS", "CREATED"])


@endpoints.command()
@click.option("--idle", metavar="DURATION", help="Also those without an invocation for so long, such as 24h.")
@common_options
def reap(options: Options, idle: str | None) -> None:
    """Delete this project's endpoints that are past their `ttl`, or idle; --dry-run lists them only."""
    settings = load_settings(replace(options, dry_run=False))  # what would be deleted, only the account knows
    from launcher.deployment import idle as unused
    from launcher.deployment.delete import delete

    limit = idle_limit(idle)
    project = open_project(settings, options)
    found = unused.reapable(project, limit, datetime.now(UTC))
    refused: dict[str, str] = {}
    for item in found if not options.dry_run else []:
        try:
            delete(project, item.name, wait=not options.no_wait)
        except (AwsRefused, TimedOut) as error:  # the others cost money as well
            refused[item.name] = str(error)
    verb = "would delete" if options.dry_run else "deleting" if options.no_wait else "deleted"
    lines = [f"-> {verb} {item.name}: {item.reason}" for item in found if item.name not in refused]
    result = [{**asdict(item), "error": refused.get(item.name)} for item in found]
    show(options, result, lines if found else ["-> nothing to delete"])
    if refused:
        raise AwsRefused("\n".join(f"{name} is still there: {problem}" for name, problem in refused.items()))


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


@endpoints.group()
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
    from launcher.console import size_text
    from launcher.jobs.api import split_s3_uri

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
    next_line = f"next: {command('invoke', f'FILE --target-model {shlex.quote(name)}', options)}"
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

"""What the verbs share: their options, how a project is opened, how a result is shown."""

import functools
import json
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from launcher.errors import ConfigError, LauncherError

if TYPE_CHECKING:
    from launcher.project import Project
    from launcher.settings import Settings

logger = logging.getLogger(__name__)

LOCAL_HOME = Path(".launcher")
IMAGES_FILE = "images.json"  # in LOCAL_HOME: what was pushed last, by kind
LOCAL_ROLE = "arn:aws:iam::123456789012:role/slipway-local"


@dataclass(frozen=True)
class Options:
    """The same for every verb that sends something."""

    config: Path | None
    overrides: tuple[str, ...]
    local: bool
    dry_run: bool
    json: bool
    no_wait: bool


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options every job kind takes, and hands them over as one `Options`."""

    @click.option("-c", "--config", type=click.Path(path_type=Path), help="The project's file (launcher.yaml).")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting of the file.")
    @click.option("--local", is_flag=True, help="Use the local SageMaker of this machine.")
    @click.option("--dry-run", is_flag=True, help="Print the requests instead of sending them.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--no-wait", is_flag=True, help="Return once the request has been taken.")
    @functools.wraps(function)
    def with_options(
        *,
        config: Path,
        overrides: tuple[str, ...],
        local: bool,
        dry_run: bool,
        as_json: bool,
        no_wait: bool,
        **rest: Any,
    ) -> Any:
        options = Options(config, overrides, local, dry_run, as_json, no_wait)
        from launcher.console import show_log, stdout_or_stderr

        show_log(stdout_or_stderr(as_json or dry_run))
        return function(options, **rest)

    return with_options


def refuse_without_project(options: Options) -> None:
    """Who starts something here and says nothing about it is in the wrong directory.

    Raises:
        ConfigError: there is no `launcher.yaml`, no `-c` and no `--set`.
    """
    from launcher.settings import DEFAULT_FILE

    if not (options.config or options.overrides or DEFAULT_FILE.exists()):
        raise ConfigError(
            f"there is no {DEFAULT_FILE} in {Path.cwd()}: go to your project, name its file with -c, "
            "or make a project with `python -m launcher init NAME`"
        )


def load_settings(options: Options, arguments: dict[str, str | None] | None = None) -> "Settings":
    """The configuration, positional arguments and `--local` included."""
    from launcher.local.client import LOCAL_IMAGES
    from launcher.settings import load, unnamed_images

    given = [f"{key}={value}" for key, value in (arguments or {}).items() if value]
    if not options.local:
        return load(options.config, [*options.overrides, *given], defaults=pushed_images)
    if not options.dry_run:
        use_local_server()
    region = os.environ.get("AWS_REGION", "us-east-1")
    local_defaults = {"role": (LOCAL_ROLE, "--local"), "images.registry": ("", "--local")}
    overrides = [*options.overrides, *given, f"region={region}"]
    asked = load(options.config, overrides)
    unnamed = unnamed_images(asked)
    for kind, image in (("training", asked.config.images.training), ("serving", asked.config.images.serving)):
        built = f"{image.repository}:{image.tag}"  # whichever registry it is pushed to
        local_defaults[f"images.{kind}.uri"] = (LOCAL_IMAGES[kind] if kind in unnamed else built, "--local")
    settings = load(options.config, overrides, defaults=lambda _: local_defaults)
    return replace(settings, origins={**settings.origins, "region": "--local"})


def pushed_images(region: str) -> dict[str, tuple[str, str]]:
    """The digests that `push` left for this region, as defaults of `images.….uri`."""
    record = LOCAL_HOME / IMAGES_FILE
    if not record.exists():
        return {}
    pushed = json.loads(record.read_text())
    return {
        f"images.{kind}.uri": (item["uri"], str(record)) for kind, item in pushed.items() if item["region"] == region
    }


def use_local_server() -> None:
    """Start the local SageMaker and point every AWS client of this process at it."""
    from launcher.aws import use_environment

    use_environment(local_server("up").environment())


def local_server(action: str) -> Any:
    """`up`, `status` or `down` of the local SageMaker.

    Raises:
        LauncherError: it did not start or end.
    """
    from launcher.local import client

    try:
        return getattr(client, action)(LOCAL_HOME)
    except client.LocalServerError as error:
        raise LauncherError(str(error)) from error


def open_project(settings: "Settings", options: Options) -> "Project":
    """The project with its account."""
    from launcher.aws import Aws
    from launcher.console import progress_for, stdout_or_stderr
    from launcher.project import Project

    progress = progress_for(stdout_or_stderr(options.json))
    return Project(settings.config, settings.directory, Aws(settings.config.region), progress, LOCAL_HOME)


def tell_price(options: Options, kind: Literal["train", "transform", "deploy"], settings: "Settings") -> None:
    """Say what a request will cost before it is sent, and refuse what cannot go well; this machine costs nothing.

    Raises:
        OverBudget: a cap in `limits` does not hold.
        PreflightRefused: the account's quotas do not allow it.
    """
    if options.local:
        return
    from launcher.account.cost import priced
    from launcher.account.preflight import refuse_over_quota
    from launcher.aws import Aws
    from launcher.jobs.hosts import warnings

    for warning in warnings(settings.config, kind):
        logger.warning("%s", warning)
    for line in priced(kind, settings.config, os.environ).lines():
        logger.info("%s", line)
    refuse_over_quota(settings.config, Aws(settings.config.region), kind)


def show_calls(options: Options, kind: str, settings: "Settings") -> None:
    """Print the requests a verb would send."""
    from launcher.dry_run import dry_calls

    calls = [asdict(call) for call in dry_calls(kind, settings.config, settings.directory)]
    show(
        options,
        calls,
        [f"# {call['service']} {call['operation']}\n{json.dumps(call['request'], indent=2)}" for call in calls],
    )


def show_call(options: Options, operation: str, request: dict[str, Any], service: str = "sagemaker") -> None:
    """Print one request a verb would send."""
    show(
        options,
        [{"service": service, "operation": operation, "request": request}],
        [f"{operation} {json.dumps(request)}"],
    )


def show(options: Options, result: Any, lines: Iterable[str]) -> None:
    """Print a result: JSON where it was asked for, lines for a person otherwise."""
    if options.json:
        click.echo(json.dumps(result, indent=2, default=str))
        return
    for line in lines:
        click.echo(line)


def show_table(options: Options, rows: list[list[str]], header: list[str]) -> None:
    """Print rows, or the same as a list of JSON objects."""
    from launcher.console import table

    records = [dict(zip([name.lower() for name in header], row, strict=True)) for row in rows]
    show(options, records, [table(rows, header)] if rows else ["none"])


def command(verb: str, argument: str, options: Options) -> str:
    """A command to copy, with the options that matter."""
    return " ".join(filter(None, ["python -m launcher", verb, argument])) + flags(options)


def flags(options: Options) -> str:
    """The options that say which project and which SageMaker, each after a space."""
    return (f" -c {options.config}" if options.config else "") + (" --local" if options.local else "")

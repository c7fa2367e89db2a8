"""Verbs about the local SageMaker, and the demo that runs on it."""

import json
import os
import shlex

import click

from launcher.commands.options import LOCAL_HOME, local_server
from launcher.errors import LauncherError


@click.command()
@click.option("--docker", is_flag=True, help="Run through the two images instead of plain processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def demo(docker: bool, as_json: bool) -> None:
    """Train, score and serve real images on this machine: no account, no network."""
    from launcher.console import show_log, stdout_or_stderr

    show_log(stdout_or_stderr(as_json))
    os.environ["SLIPWAY_LOCAL_RUNTIME"] = "docker" if docker else "process"
    from launcher.demo import run_demo

    report = run_demo(docker, as_json)
    click.echo(json.dumps(report.as_json(), indent=2) if as_json else report.text())


@click.group()
def local() -> None:
    """The local SageMaker of this machine."""


@local.command()
def up() -> None:
    """Start it, unless it runs."""
    server = local_server("up")
    click.echo(f"-> {server.url} (pid {server.pid}, {server.runtime})")
    click.echo('next: eval "$(python -m launcher local env)"')


@local.command()
def down() -> None:
    """Stop it."""
    click.echo("-> stopped" if local_server("down") else "-> it was not running")


@local.command()
def status() -> None:
    """Say whether it runs."""
    server = local_server("status")
    click.echo(f"-> {server.url} (pid {server.pid}, {server.runtime})" if server else "-> it is not running")


@local.command()
def env() -> None:
    """Print the variables with which any AWS client talks to it."""
    for name, value in local_server("up").environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command()
@click.argument("job")
def interrupt(job: str) -> None:
    """Interrupt the spot training job JOB, as a reclaim of its machines does."""
    from launcher.local import client

    try:
        client.interrupt(LOCAL_HOME, job)
    except client.LocalServerError as error:
        raise LauncherError(str(error)) from error
    click.echo(f"-> interrupted {job}")

"""`python -m launcher`: arguments in, lines out. What a verb needs is imported when it runs."""

import click

from launcher.check import command as check
from launcher.commands import account, deploy, endpoints, images, invoke, jobs, load, local, project
from launcher.commands.options import LOCAL_HOME
from launcher.errors import ConfigError, Detached, JobStopped, LauncherError

UNEXPECTED = 1
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Build, train, transform and serve with your own container on Amazon SageMaker, or on this machine."""


for verb in (
    project.init,
    project.config,
    jobs.train,
    jobs.transform,
    deploy.deploy,
    invoke.invoke,
    load.load,
    endpoints.endpoints,
    deploy.delete,
    deploy.rollback,
    jobs.jobs,
    jobs.logs,
    jobs.stop,
    jobs.attach,
    jobs.show_job,
    jobs.explain,
    jobs.download,
    images.build,
    images.push,
    images.image,
    local.demo,
    local.local,
):
    cli.add_command(verb)
check.register(cli)
account.register(cli)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; whatever goes wrong is one line and an exit status.

    Returns:
        0 done, 1 unexpected, 2 usage or configuration, 3 preflight, 4 refused by AWS, 5 job failed, 6 timed out,
        7 over budget, 130 interrupted.
    """
    try:
        cli.main(args=arguments, prog_name="python -m launcher", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ConfigError.exit_code
    except (Detached, JobStopped) as error:
        click.echo(f"-> {error}", err=True)
        return error.exit_code
    except LauncherError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:  # the top: a traceback tells a user nothing
        return unexpected(error)
    return 0


def unexpected(error: Exception) -> int:
    """One line for an error nobody foresaw; the trace goes to a file."""
    import traceback

    LOCAL_HOME.mkdir(exist_ok=True)
    trace = LOCAL_HOME / "error.log"
    trace.write_text("".join(traceback.format_exception(error)))
    click.echo(f"error: {type(error).__name__}: {error} (unexpected; the trace is in {trace})", err=True)
    return UNEXPECTED

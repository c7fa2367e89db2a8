"""`python -m launcher`: arguments in, lines out. What a verb needs is imported when it runs."""

import click

from launcher.check import command as check
from launcher.commands import account, deploy, endpoints, images, invoke, jobs, load, local, project
from launcher.commands.options import LOCAL_HOME
from launcher.errors import ConfigError, Detached, JobStopped, LauncherError

UNEXPECTED = 1
INTERRUPTED = 130
WHOLE_SENTENCE = 300  # characters; click cuts a verb's help off after 45


class Verbs(click.Group):
    """Lists its verbs by what they are about, in the order in which one needs them, and each in a whole sentence."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in VERBS.items():
            with formatter.section(title):
                rows = [(f"{verb.name:<10}", verb.get_short_help_str(WHOLE_SENTENCE)) for verb in verbs]
                formatter.write_dl(rows)


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Begin: python -m launcher init my-project. Each verb has a --help of its own.",
)
def cli() -> None:
    """Build, train, transform and serve with your own container on Amazon SageMaker, or with --local here."""


VERBS: dict[str, tuple[click.Command, ...]] = {
    "A project": (project.init, project.config, account.doctor, local.demo),
    "Jobs": (
        jobs.train,
        jobs.transform,
        jobs.jobs,
        jobs.show_job,
        jobs.logs,
        jobs.attach,
        jobs.stop,
        jobs.explain,
        jobs.download,
    ),
    "Endpoints": (
        deploy.deploy,
        invoke.invoke,
        load.load,
        endpoints.endpoints,
        deploy.rollback,
        deploy.delete,
    ),
    "Images": (images.build, images.image, images.push, check.check),
    "The account": (account.preflight, account.iam, account.cost),
    "The SageMaker of this machine": (local.local,),
}
for verb in (verb for verbs in VERBS.values() for verb in verbs):
    cli.add_command(verb)


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

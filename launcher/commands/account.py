"""The verbs about the account and this machine: `iam policy`, `preflight`, `cost estimate|report`, `doctor`."""

import functools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from launcher.config import Config
    from launcher.jobs.api import JobContext

JOB_KINDS = ("train", "transform", "deploy")
DEFAULT_ROLE = "slipway-execution-role"


@dataclass(frozen=True)
class Asked:
    """What these verbs take, all of them."""

    config: Path | None
    overrides: tuple[str, ...]
    json: bool

    def load(self) -> "Config":
        """The checked configuration."""
        from launcher.settings import load

        return load(self.config, self.overrides).config

    def show(self, result: Any, lines: list[str]) -> None:
        """JSON where it was asked for, lines for a person otherwise."""
        click.echo(json.dumps(result, indent=2, default=str) if self.json else "\n".join(lines))


def asking(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options every verb here takes, and hands them over as one `Asked`."""

    @click.option("-c", "--config", type=click.Path(path_type=Path), help="The project's file (launcher.yaml).")
    @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override one setting of the file.")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @functools.wraps(function)
    def with_options(*, config: Path, overrides: tuple[str, ...], as_json: bool, **rest: Any) -> Any:
        return function(Asked(config, overrides, as_json), **rest)

    return with_options


def for_kinds(*choices: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds `--for`: which verbs are meant; all of them by default."""
    return click.option(
        "--for", "kinds", multiple=True, type=click.Choice(choices), default=choices, help="Only this (repeatable)."
    )


@click.group()
def iam() -> None:
    """Access: the policies this configuration needs."""


@iam.command()
@click.option("--account", metavar="ID", help="Twelve digits (default: that of the role's ARN).")
@click.option(
    "--part", type=click.Choice(["execution_role", "caller", "preflight", "trust"]), help="Print this document alone."
)
@for_kinds("train", "transform", "deploy", "push")
@asking
def policy(asked: Asked, account: str | None, part: str | None, kinds: tuple[Any, ...]) -> None:
    """Print the least-privilege policies for exactly this configuration; nothing is sent."""
    from launcher.account.iam import policies

    config = asked.load()
    context, notes = context_of(config, account)
    documents = policies(config, context, kinds).documents()
    if part:
        click.echo(json.dumps(documents[part], indent=2))
        return
    documents["notes"] = [*notes, *documents["notes"]]
    texts = [f"# {name}\n{json.dumps(documents[name], indent=2)}" for name in documents if name != "notes"]
    asked.show(documents, [*texts, *(f"# note: {note}" for note in documents["notes"])])


def context_of(config: "Config", account: str | None) -> "tuple[JobContext, list[str]]":
    """Account, bucket and role as far as they are known offline, and what had to be assumed."""
    from launcher.account.iam_statements import Arns
    from launcher.dry_run import DRY_RUN_ACCOUNT
    from launcher.jobs.api import JobContext
    from launcher.project import default_bucket

    role, notes = config.role or DEFAULT_ROLE, []
    of_role = role.split(":")[4] if role.startswith("arn:") else None
    known = account or of_role
    if not known:
        notes.append(f"account {DRY_RUN_ACCOUNT} is AWS's example: pass --account, or set role to an ARN")
    if not config.role:
        notes.append(f"no role is configured; {DEFAULT_ROLE} stands for it")
    account = known or DRY_RUN_ACCOUNT
    partition = Arns(account, config.region).partition
    return JobContext(
        job_name=config.name,
        account=account,
        region=config.region,
        bucket=config.bucket or default_bucket(config.region, account),
        role_arn=role if of_role else f"arn:{partition}:iam::{account}:role/{role}",
    ), notes


@click.command()
@for_kinds(*JOB_KINDS)
@asking
def preflight(asked: Asked, kinds: tuple[Any, ...]) -> None:
    """Ask AWS, reading only, for everything that would make a request fail later; say who lacks what."""
    from launcher.account import preflight as checks
    from launcher.account.cost import load_prices
    from launcher.aws import Aws
    from launcher.findings import lines

    config = asked.load()
    found = checks.preflight(config, Aws(config.region), load_prices(os.environ), kinds)
    asked.show([asdict(item) for item in found], lines(found))
    checks.refuse(found)


@click.group()
def cost() -> None:
    """Money: what a request will cost, and what was spent."""


@cost.command()
@for_kinds(*JOB_KINDS)
@asking
def estimate(asked: Asked, kinds: tuple[Any, ...]) -> None:
    """Price per hour and month and the maximum, before anything is sent; refused where a limit does not hold."""
    from launcher.account import cost as costs

    config, prices = asked.load(), costs.load_prices(os.environ)
    wanted = [kind for kind in kinds if kind != "transform" or config.transform.input]
    found = [costs.estimate(kind, config, prices) for kind in wanted]
    asked.show([asdict(item) for item in found], [*(line for item in found for line in item.lines()), str(prices)])
    for item in found:
        costs.refuse_over_limit(item, config.limits)


@cost.command()
@click.option("--tag", default="slipway:project", show_default=True, help="Add up by the values of this tag.")
@click.option("--since", default="30d", show_default=True, metavar="DURATION", help="Jobs made since so long ago.")
@asking
def report(asked: Asked, tag: str, since: str) -> None:
    """What training jobs, transform jobs and endpoints have cost, by the value of a tag, and what spot saved."""
    from datetime import UTC, datetime, timedelta

    from launcher.account import cost_report
    from launcher.account.cost import load_prices
    from launcher.aws import Aws
    from launcher.console import table

    config, prices, now = asked.load(), load_prices(os.environ), datetime.now(UTC)
    billing = cost_report.Billing(prices, config.region, now - timedelta(seconds=seconds_of(since)), now)
    spent = cost_report.report(Aws(config.region), billing, tag)
    groups = cost_report.by_tag(spent)
    rows = [
        [item.tag, str(item.count), f"{item.instance_hours:.2f}", _usd(item.usd, item.unknown), _usd(item.saved_usd)]
        for item in groups
    ]
    result = {
        "tag": tag,
        "groups": [asdict(item) for item in groups],
        "items": [asdict(item) for item in spent],
        "prices": {"date": prices.date, "source": prices.source},
    }
    lines = [table(rows, [tag.upper(), "COUNT", "INSTANCE HOURS", "USD", "SPOT SAVED"])] if rows else ["none"]
    asked.show(result, [*lines, str(prices)])


def _usd(amount: float, unknown: int = 0) -> str:
    return f"{amount:.2f}" + (f" + {unknown} of unknown price" if unknown else "")


def seconds_of(text: str) -> int:
    """A duration such as `30d` in seconds.

    Raises:
        click.BadParameter: the text is none.
    """
    from launcher.config.values import parse_duration

    try:
        return int(str(parse_duration(text)))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error


@click.command()
@click.option("--fix", is_flag=True, help="Remove containers that a local SageMaker left behind when it was killed.")
@asking
def doctor(asked: Asked, fix: bool) -> None:
    """Look at this machine: what is there, what is missing, and what to do about it."""
    from launcher import doctor as checks
    from launcher.errors import JobFailed
    from launcher.findings import failures, lines

    machine = checks.Machine(os.environ, config=asked.config, overrides=asked.overrides)
    for line in checks.fix(machine) if fix else []:
        click.echo(f"-> {line}", err=asked.json)
    found = checks.doctor(machine)
    asked.show([asdict(item) for item in found], lines(found))
    failed = failures(found)
    if failed:
        raise JobFailed(f"{len(failed)} of {len(found)} checks failed: {', '.join(item.check for item in failed)}")

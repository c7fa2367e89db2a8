"""The verb `load`: an endpoint under stages of load, a table, a picture, and what to set."""

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands.invoke import component_asked, mode_of, read_body, request_options
from launcher.commands.options import (
    LOCAL_HOME,
    Options,
    common_options,
    load_settings,
    open_project,
    show,
    show_call,
)
from launcher.console import table
from launcher.errors import ConfigError

if TYPE_CHECKING:
    from launcher.load.advice import Fleet
    from launcher.load.stages import Load, Plan, Stage
    from launcher.project import Project

LONGEST_SECONDS = 3600
HEADER = ["AT ONCE", "REQUESTS", "ERRORS", "PER SECOND", "MEAN MS", "P50", "P90", "P99", "MAX"]
XLARGE_CPUS = 4  # vCPUs per "xlarge", in every family that SageMaker hosts on
SMALL_CPUS = {"medium": 2, "large": 2}


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--endpoint", help="Its name (default: the project's).")
@click.option("--stages", default="1,2,4,8,16,32", show_default=True, help="Requests under way at once, per stage.")
@click.option("--duration", default="10s", show_default=True, help="Of each stage.")
@click.option("--warm-up", default="3s", show_default=True, help="Before the first; not counted.")
@click.option("--target-rps", type=click.FloatRange(min=0, min_open=True), help="Requests per second to plan for.")
@click.option("--target-p99-ms", type=click.FloatRange(min=0, min_open=True), help="Latency that must hold.")
@click.option("--chart", type=click.Path(path_type=Path), help="PNG to write (default: .launcher/load-ENDPOINT.png).")
@request_options
@common_options
def load(options: Options, files: tuple[Path, ...], **given: Any) -> None:
    """Send FILES in turn to the endpoint, more and more at once: latencies, throughput, the knee, and what to set."""
    from launcher.jobs.endpoint import endpoint_name

    settings = load_settings(options)
    name = given["endpoint"] or endpoint_name(settings.config)
    planned = plan_of(given)
    if options.dry_run:
        return show_call(options, "InvokeEndpoint", {"EndpointName": name}, "sagemaker-runtime")
    from launcher.invoke import Request, check_size, content_type_of
    from launcher.load.advice import Target, advise
    from launcher.load.chart import draw
    from launcher.load.stages import run

    targets = {key: given[key] for key in ("target_variant", "target_model", "target_container")}
    targets["component"] = component_asked(settings, name, given["component"])
    requests = [
        Request(name, read_body(file), given["content_type"] or content_type_of(file), given["accept"], **targets)
        for file in files
    ]
    project = open_project(settings, options)
    mode = mode_of(project, name)
    if mode == "asynchronous":
        raise ConfigError(f"{name} is asynchronous and answers into S3; `load` measures answers that are waited for")
    for request in requests:
        check_size(request, mode)
    fleet = fleet_of(project, name, given["target_variant"], options.local)
    if not options.json:
        click.echo(f"   {name}: at most {planned.seconds:.0f} s\n   " + row_text(HEADER))
    ran = run(project.aws, requests, planned, None if options.json else tell_stage)
    chart = given["chart"] or LOCAL_HOME / f"load-{name}.png"
    target = Target(given["target_rps"], given["target_p99_ms"])
    draw(ran, target, f"{name}, {fleet.instances or 'serverless'} x {fleet.instance_type}", chart)
    return show_load(options, ran, advise(ran, fleet, target), chart)


def plan_of(given: dict[str, Any]) -> "Plan":
    """The stages that the options ask for.

    Raises:
        ConfigError: they are no such numbers or durations, or too many.
    """
    from launcher.config.values import parse_duration
    from launcher.load.stages import MOST_SENDERS, Plan

    if not re.fullmatch(r"\d+(,\d+)*", given["stages"]):
        raise ConfigError(f"--stages {given['stages']!r} is no list of numbers such as 1,2,4,8")
    stages = tuple(sorted({int(number) for number in given["stages"].split(",")}))
    if not 1 <= stages[0] <= stages[-1] <= MOST_SENDERS:
        raise ConfigError(f"--stages {given['stages']}: each must be between 1 and {MOST_SENDERS}")
    try:
        duration, warm_up = (float(str(parse_duration(given[name]))) for name in ("duration", "warm_up"))
    except ValueError as error:
        raise ConfigError(f"--duration, --warm-up: {error}") from error
    plan = Plan(stages, duration, warm_up)
    if not duration or plan.seconds > LONGEST_SECONDS:
        raise ConfigError(
            f"--duration {given['duration']}: {len(stages)} stages take {plan.seconds:.0f} s; "
            "`load` takes between a second and an hour"
        )
    return plan


def fleet_of(project: "Project", name: str, variant: str | None, local: bool) -> "Fleet":
    """The instances behind an endpoint, or behind one of its variants.

    Raises:
        AwsRefused: there is no such endpoint.
    """
    from launcher.load.advice import Fleet

    described = project.aws.call("sagemaker", "DescribeEndpoint", EndpointName=name)
    running = [item for item in described["ProductionVariants"] if variant in (None, item["VariantName"])]
    config = project.aws.call("sagemaker", "DescribeEndpointConfig", EndpointConfigName=described["EndpointConfigName"])
    types = {item["VariantName"]: item.get("InstanceType") for item in config["ProductionVariants"]}
    found = [types.get(item["VariantName"]) for item in running if types.get(item["VariantName"])]
    if not found:
        return Fleet(None, "serverless", 0, accelerated=False)
    instances = sum(item.get("CurrentInstanceCount", 1) for item in running)
    if local:  # whatever the instance type says, it is this machine
        return Fleet(instances, "this machine", os.cpu_count() or 1, accelerated=False)
    kind = str(found[0])
    return Fleet(instances, kind, cpus_of(kind), accelerated=kind.split(".")[1][0] in "gp" or "inf" in kind)


def cpus_of(instance_type: str) -> int:
    """VCPUs by the size in an instance type's name: `large` has 2, `4xlarge` has 16."""
    size = instance_type.rpartition(".")[2]
    if size in SMALL_CPUS:
        return SMALL_CPUS[size]
    return XLARGE_CPUS * int(size.removesuffix("xlarge") or 1)


def tell_stage(stage: "Stage") -> None:
    """One line of the table, as soon as it is known."""
    failed = ", ".join(f"{count} {kind}" for kind, count in stage.errors.items()) or "0"
    times = (stage.mean_ms, stage.p50_ms, stage.p90_ms, stage.p99_ms, stage.max_ms)
    cells = [str(stage.concurrency), str(stage.requests), failed, f"{stage.requests_per_second:.1f}"]
    click.echo("   " + row_text([*cells, *(f"{time:.1f}" for time in times)]))


def row_text(cells: list[str]) -> str:
    """Cells under each other, though the next rows are not known yet."""
    return "  ".join(cell.rjust(len(head)) for cell, head in zip(cells, WIDE_HEADER, strict=True))


WIDE_HEADER = [head.rjust(8) for head in HEADER]


def show_load(options: Options, ran: "Load", advice: list[Any], chart: Path) -> None:
    """Print where the knee lies, what to set, and where the picture is."""
    knee = ran.knee
    result = {
        "stages": [asdict(stage) for stage in ran.stages],
        "knee": knee.concurrency,
        "advice": [asdict(item) for item in advice],
        "notes": ran.notes,
        "chart": str(chart),
    }
    rows = [[item.setting, "" if item.value is None else f"{item.value:g}", item.why] for item in advice]
    show(
        options,
        result,
        [
            f"-> knee at {knee.concurrency} under way: {knee.requests_per_second:.1f}/s, p99 {knee.p99_ms:.1f} ms",
            *(f"   {note}" for note in ran.notes),
            table(rows, ["SETTING", "VALUE", "BECAUSE"]),
            f"-> {chart}",
        ],
    )

"""Verbs about jobs: train, transform, and what one does with a job afterwards."""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import click

from container.contract import BUILTIN_METRICS
from launcher.commands.options import (
    Options,
    command,
    common_options,
    flags,
    load_settings,
    open_project,
    refuse_without_project,
    show,
    show_call,
    show_calls,
    show_table,
    tell_price,
)
from launcher.commands.probe import propose, show_probe
from launcher.console import table
from launcher.errors import ConfigError

JOBS_SHOWN = 50


@click.command()
@common_options
def train(options: Options) -> None:
    """Run a training job: upload its inputs, follow its logs, say where the model lies."""
    refuse_without_project(options)
    settings = load_settings(options)
    if options.dry_run:
        return show_calls(options, "train", settings)
    from launcher import run

    tell_price(options, "train", settings)
    project = open_project(settings, options)
    if options.no_wait:
        name = project.start_training()
        return show(options, {"name": name}, [f"next: {command('attach', name, options)}"])
    return show_trained(options, project.train(lambda name: run.follow(project.aws, run.TRAINING, name)))


def show_trained(options: Options, description: dict[str, Any]) -> None:
    """Print what matters of a finished training job."""
    result = training_result(description)
    lines = [f"-> trained {result['name']}" + seconds_text(result), f"-> model {result['model']}"]
    if result["phases"]:
        lines.append("   " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["phases"].items()))
    lines += [f"   {metric} {value:.4g}" for metric, value in result["metrics"].items()]
    lines += [f"   {metric}: no line of the log had it" for metric in missing_metrics(description)]
    show(options, result, [*lines, f"next: {command('deploy', result['name'], options)}"])


@click.command()
@click.argument("model", required=False)
@click.option("--probe", is_flag=True, help="Start the container here and ask it what to set; runs no job.")
@common_options
def transform(options: Options, model: str | None, probe: bool) -> None:
    """Run a batch transform job with MODEL: a training job, an S3 URI or a local model.tar.gz."""
    refuse_without_project(options)
    settings = load_settings(options, {"transform.model": model})
    if options.dry_run:
        return show_calls(options, "transform", settings)
    if probe:
        return show_probe(options, settings)
    from launcher import run

    tell_price(options, "transform", settings)
    project = open_project(settings, options)
    propose(options, settings, project)
    name = project.start_transform()
    if options.no_wait:
        return show(options, {"name": name}, [f"next: {command('logs -f', name, options)}"])
    description = run.follow(project.aws, run.TRANSFORM, name)
    output = description["TransformOutput"]["S3OutputPath"]
    result = {"name": name, "status": description["TransformJobStatus"], "output": output}
    return show(options, result, [f"-> transformed {name}", f"next: {command('download', f'{output}/ .', options)}"])


@click.command()
@click.argument("name")
@common_options
def stop(options: Options, name: str) -> None:
    """Stop the training or transform job NAME."""
    settings = load_settings(options)
    from launcher import run

    if options.dry_run:
        return show_call(options, "StopTrainingJob", {"TrainingJobName": name})
    aws = open_project(settings, options).aws
    kind = run.find_kind(aws, name)
    if kind is run.ENDPOINT:
        raise ConfigError(f"{name} is an endpoint; end it with `python -m launcher delete {name}`")
    aws.send(kind.stop_call(name))
    return show(options, {"stopping": name}, [f"-> stopping {name}"])


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends; of an endpoint until Ctrl-C.")
@common_options
def logs(options: Options, name: str, follow: bool) -> None:
    """Print the log of a job or endpoint, all hosts merged by time."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "GetLogEvents", {"logStreamNamePrefix": f"{name}/"}, "logs")
    from launcher import run

    aws = open_project(settings, options).aws
    kind = run.find_kind(aws, name)
    follower = run.LogFollower(aws, *kind.log_streams(name))
    if follow and kind is run.ENDPOINT:
        run.follow_log(follower)
    if follow:
        run.follow(aws, kind, name)
        return None
    lines = follower.read()
    if options.json:
        return show(
            options, [{"time": line.timestamp, "host": line.host, "message": line.message} for line in lines], []
        )
    run.show_lines(lines)
    return None


@click.command()
@click.argument("name")
@common_options
def attach(options: Options, name: str) -> None:
    """Follow the job NAME again until it ends, as the verb that started it does."""
    settings = load_settings(options)
    from launcher import run

    if options.dry_run:
        return show_call(options, "DescribeTrainingJob", {"TrainingJobName": name})
    aws = open_project(settings, options).aws
    kind = run.find_kind(aws, name)
    description = run.follow(aws, kind, name)
    if kind is run.TRAINING:
        return show_trained(options, description)
    return show(options, {"name": name, "status": description[kind.status_member]}, [f"-> {kind.title} {name} is done"])


@click.command("show")
@click.argument("name")
@common_options
def show_job(options: Options, name: str) -> None:
    """Print what a job or endpoint is: its whole description with --json."""
    settings = load_settings(options)
    from launcher import run

    if options.dry_run:
        return show_call(options, "DescribeTrainingJob", {"TrainingJobName": name})
    aws = open_project(settings, options).aws
    kind = run.find_kind(aws, name)
    description = kind.describe(aws, name)
    description.pop("ResponseMetadata", None)
    rows = [[key, text] for key, text in description_rows(description)]
    failed = description[kind.status_member] in kind.bad
    lines = [table(rows, ["MEMBER", "VALUE"])] + ([f"next: {command('explain', name, options)}"] if failed else [])
    return show(options, description, lines)


@click.command()
@click.argument("name")
@common_options
def explain(options: Options, name: str) -> None:
    """Say why the job or endpoint NAME failed, with the lines that show it and what to do."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "DescribeTrainingJob", {"TrainingJobName": name})
    from launcher import run
    from launcher.explain import explain as explain_failure

    aws = open_project(settings, options).aws
    kind = run.find_kind(aws, name)
    description = kind.describe(aws, name)
    written = [line.text for line in run.last_lines(aws, kind, name, description["CreationTime"])]
    found = explain_failure(name, description[kind.status_member], description, written, flags(options))
    return show(options, asdict(found), found.lines())


@click.command()
@common_options
def jobs(options: Options) -> None:
    """List the newest 50 training and transform jobs of the account."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListTrainingJobs", {})
    aws = open_project(settings, options).aws
    rows = []
    for noun in ("TrainingJob", "TransformJob"):
        found = aws.listed(f"List{noun}s", f"{noun}Summaries", SortBy="CreationTime", SortOrder="Descending")
        rows += [
            [item[f"{noun}Name"], noun, item[f"{noun}Status"], f"{item['CreationTime']:%Y-%m-%d %H:%M:%S}"]
            for item in islice(found, JOBS_SHOWN)
        ]
    rows.sort(key=lambda row: row[3], reverse=True)
    return show_table(options, rows[:JOBS_SHOWN], ["NAME", "KIND", "STATUS", "CREATED"])


@click.command()
@click.argument("uri")
@click.argument("target", type=click.Path(path_type=Path), default=".")
@common_options
def download(options: Options, uri: str, target: Path) -> None:
    """Copy what lies under an S3 URI, or what a job left (a failed one, too), to TARGET."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListObjectsV2", {"Prefix": uri}, "s3")
    from launcher import data

    project = open_project(settings, options)
    source = uri if uri.startswith("s3://") else project.output_uri(uri)
    done = data.download(project.aws, source, target, project.progress)
    if not done.files:
        raise ConfigError(f"there is nothing under {source}")
    return show(options, asdict(done), [f"-> {done.files} file{'s' if done.files != 1 else ''} in {target}"])


def training_result(description: dict[str, Any]) -> dict[str, Any]:
    """What matters of a finished training job."""
    return {
        "name": description["TrainingJobName"],
        "status": description["TrainingJobStatus"],
        "model": description.get("ModelArtifacts", {}).get("S3ModelArtifacts"),
        "training_seconds": description.get("TrainingTimeInSeconds"),
        "billable_seconds": description.get("BillableTimeInSeconds"),
        "phases": phase_seconds(description.get("SecondaryStatusTransitions", [])),
        "metrics": {item["MetricName"]: item["Value"] for item in description.get("FinalMetricDataList", [])},
    }


def missing_metrics(description: dict[str, Any]) -> list[str]:
    """Metrics that the project names itself and no line of the log had: a tuning job would miss its objective."""
    asked = [item["Name"] for item in description.get("AlgorithmSpecification", {}).get("MetricDefinitions", [])]
    found = {item["MetricName"] for item in description.get("FinalMetricDataList", [])}
    return [name for name in asked if name not in found] if asked != list(BUILTIN_METRICS) else []


def phase_seconds(transitions: list[dict[str, Any]]) -> dict[str, float]:
    """How long a job was in each status; an interrupted one was in some of them several times."""
    phases: dict[str, float] = {}
    for step in transitions:
        if step.get("EndTime") and step["EndTime"] != step["StartTime"]:
            length = (step["EndTime"] - step["StartTime"]).total_seconds()
            phases[step["Status"]] = round(phases.get(step["Status"], 0.0) + length, 1)
    return phases


def seconds_text(result: dict[str, Any]) -> str:
    """Times of a training job; with spot, what it saved."""
    training, billable = result["training_seconds"], result["billable_seconds"]
    if training is None:
        return ""
    saved = f", spot saved {100 - 100 * billable // training}%" if billable and training and billable < training else ""
    return f" in {training} s" + (f" (billed {billable} s{saved})" if billable is not None else "")


def description_rows(description: dict[str, Any]) -> list[tuple[str, str]]:
    """A description's members as text; of its transitions the steps with their seconds."""
    rows = []
    for key, value in description.items():
        if key == "SecondaryStatusTransitions":
            text = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in phase_seconds(value).items())
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
        rows.append((key, text))
    return rows

"""`python -m launcher`: arguments in, lines out. Everything else is imported by the verb that needs it."""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.errors import ConfigError, Detached, LauncherError

if TYPE_CHECKING:
    from launcher.project import Project
    from launcher.settings import Settings

LOCAL_HOME = Path(".launcher")
LOCAL_ROLE = "arn:aws:iam::123456789012:role/slipway-local"
UNEXPECTED = 1
INTERRUPTED = 130


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Build, train, transform and serve with your own container on Amazon SageMaker, or on this machine."""


@cli.command()
@common_options
def train(options: Options) -> None:
    """Run a training job: upload its inputs, follow its logs, say where the model lies."""
    settings = load_settings(options)
    if options.dry_run:
        return show_calls(options, "train", settings)
    from launcher import run

    project = open_project(settings, options)
    name = project.start_training()
    if options.no_wait:
        return show(options, {"name": name}, [f"next: {command('logs -f', name, options)}"])
    description = run.follow(project.aws, run.TRAINING, name)
    result = training_result(description)
    lines = [f"-> trained {name}" + seconds_text(result), f"-> model {result['model']}"]
    lines += [f"   {metric} {value:.4g}" for metric, value in result["metrics"].items()]
    return show(options, result, [*lines, f"next: {command('deploy', name, options)}"])


@cli.command()
@click.argument("model", required=False)
@common_options
def transform(options: Options, model: str | None) -> None:
    """Run a batch transform job with MODEL: a training job, an S3 URI or a local model.tar.gz."""
    settings = load_settings(options, {"transform.model": model})
    if options.dry_run:
        return show_calls(options, "transform", settings)
    from launcher import run

    project = open_project(settings, options)
    name = project.start_transform()
    if options.no_wait:
        return show(options, {"name": name}, [f"next: {command('logs -f', name, options)}"])
    description = run.follow(project.aws, run.TRANSFORM, name)
    output = description["TransformOutput"]["S3OutputPath"]
    result = {"name": name, "status": description["TransformJobStatus"], "output": output}
    return show(options, result, [f"-> transformed {name}", f"next: {command('download', f'{output}/ .', options)}"])


@cli.command()
@click.argument("model", required=False)
@common_options
def deploy(options: Options, model: str | None) -> None:
    """Create or update the endpoint so that it serves MODEL: a training job, an S3 URI or a local model.tar.gz."""
    settings = load_settings(options, {"endpoint.model": model})
    if options.dry_run:
        return show_calls(options, "deploy", settings)
    from launcher import run

    project = open_project(settings, options)
    steps, name = project.deployment()
    if not options.json:
        click.echo("\n".join(f"   {step}" for step in steps))
    project.apply(steps)
    if not options.no_wait:
        run.follow(project.aws, run.ENDPOINT, name)
    changed = [{"action": step.action, "operation": step.call.operation} for step in steps]
    return show(
        options,
        {"name": name, "steps": changed},
        [
            f"-> endpoint {name}" + ("" if options.no_wait else " is in service"),
            f"next: {command('invoke', 'FILE', options)}",
        ],
    )


@cli.command()
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


@cli.command()
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


@cli.command()
@click.argument("endpoint")
@common_options
def delete(options: Options, endpoint: str) -> None:
    """Delete ENDPOINT and its configuration; models stay, they cost nothing."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "DeleteEndpoint", {"EndpointName": endpoint})
    project = open_project(settings, options)
    project.delete_endpoint(endpoint, wait=not options.no_wait)
    return show(options, {"deleted": endpoint}, [f"-> deleted the endpoint {endpoint}"])


@cli.command()
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


@cli.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@common_options
def logs(options: Options, name: str, follow: bool) -> None:
    """Print the log of a job or endpoint, all hosts merged by time."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "GetLogEvents", {"logStreamNamePrefix": f"{name}/"}, "logs")
    from launcher import run

    aws = open_project(settings, options).aws
    kind = run.find_kind(aws, name)
    if follow:
        run.follow(aws, kind, name)
        return None
    lines = run.LogFollower(aws, *kind.log_streams(name)).read()
    if options.json:
        return show(
            options, [{"time": line.timestamp, "host": line.host, "message": line.message} for line in lines], []
        )
    run.show_lines(lines)
    return None


@cli.command()
@common_options
def jobs(options: Options) -> None:
    """List training and transform jobs, the newest first."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListTrainingJobs", {})
    aws = open_project(settings, options).aws
    rows = []
    for noun in ("TrainingJob", "TransformJob"):
        reply = aws.call("sagemaker", f"List{noun}s", SortBy="CreationTime", SortOrder="Descending")
        rows += [
            [item[f"{noun}Name"], noun, item[f"{noun}Status"], f"{item['CreationTime']:%Y-%m-%d %H:%M:%S}"]
            for item in reply[f"{noun}Summaries"]
        ]
    rows.sort(key=lambda row: row[3], reverse=True)
    return show_table(options, rows, ["NAME", "KIND", "STATUS", "CREATED"])


@cli.command()
@click.argument("uri")
@click.argument("target", type=click.Path(path_type=Path), default=".")
@common_options
def download(options: Options, uri: str, target: Path) -> None:
    """Copy what lies under an S3 URI (or a training job's artifacts) to TARGET."""
    settings = load_settings(options)
    if options.dry_run:
        return show_call(options, "ListObjectsV2", {"Prefix": uri}, "s3")
    from launcher import data

    project = open_project(settings, options)
    source = uri if uri.startswith("s3://") else project.artifact_uri(uri).rpartition("/")[0] + "/"
    done = data.download(project.aws, source, target, project.progress)
    return show(options, asdict(done), [f"-> {done.files} files in {target}"])


@cli.command()
@click.argument("image", type=click.Choice(["training", "serving", "all"]), default="all")
@common_options
def build(options: Options, image: str) -> None:
    """Build the training image, the serving image or both."""
    from launcher import images

    settings = load_settings(options)
    kinds = ["training", "serving"] if image == "all" else [image]
    chosen = {kind: getattr(settings.config.images, kind) for kind in kinds}
    network = settings.config.images.network
    if options.dry_run:
        argv = {kind: images.build_argv(item, settings.directory, network) for kind, item in chosen.items()}
        return show(options, argv, [" ".join(words) for words in argv.values()])
    built = {}
    for kind, item in chosen.items():
        identity = images.build(item, settings.directory, network, settings.config.images.buildkit)
        built[kind] = {"image": images.local_reference(item), "id": identity}
    lines = [f"-> built {item['image']} {item['id'][:19]}" for item in built.values()]
    return show(options, built, [*lines, "next: python -m launcher train --local"])


@cli.command()
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


@cli.group()
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


def load_settings(options: Options, arguments: dict[str, str | None] | None = None) -> "Settings":
    """The configuration, positional arguments and `--local` included."""
    from launcher.settings import load

    given = [f"{key}={value}" for key, value in (arguments or {}).items() if value]
    if not options.local:
        return load(options.config, [*options.overrides, *given])
    if not options.dry_run:
        use_local_server()
    region = os.environ.get("AWS_REGION", "us-east-1")
    local_defaults = {"role": LOCAL_ROLE, "images.registry": ""}
    return load(options.config, [*options.overrides, *given, f"region={region}"], defaults=local_defaults)


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
    return Project(settings.config, settings.directory, Aws(settings.config.region), progress)


def show_calls(options: Options, kind: str, settings: "Settings") -> None:
    """Print the requests a verb would send."""
    from launcher.project import dry_calls

    calls = [asdict(call) for call in dry_calls(kind, settings.config)]
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


def training_result(description: dict[str, Any]) -> dict[str, Any]:
    """What matters of a finished training job."""
    return {
        "name": description["TrainingJobName"],
        "status": description["TrainingJobStatus"],
        "model": description.get("ModelArtifacts", {}).get("S3ModelArtifacts"),
        "training_seconds": description.get("TrainingTimeInSeconds"),
        "billable_seconds": description.get("BillableTimeInSeconds"),
        "metrics": {item["MetricName"]: item["Value"] for item in description.get("FinalMetricDataList", [])},
    }


def seconds_text(result: dict[str, Any]) -> str:
    """Times of a training job; with spot, what it saved."""
    training, billable = result["training_seconds"], result["billable_seconds"]
    if training is None:
        return ""
    saved = f", spot saved {100 - 100 * billable // training}%" if billable and training and billable < training else ""
    return f" in {training} s" + (f" (billed {billable} s{saved})" if billable is not None else "")


def measurement_text(measured: dict[str, Any]) -> str:
    """Latencies and throughput in one line."""
    return (
        "-> {requests} requests, {errors} errors, {requests_per_second:.1f}/s, "
        "p50 {p50_ms:.1f} ms, p90 {p90_ms:.1f} ms, p99 {p99_ms:.1f} ms, max {max_ms:.1f} ms"
    ).format(**measured)


def command(verb: str, argument: str, options: Options) -> str:
    """A command to copy, with the options that matter."""
    given = ([f"-c {options.config}"] if options.config else []) + (["--local"] if options.local else [])
    return " ".join(["python -m launcher", verb, argument, *given])


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


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; whatever goes wrong is one line and an exit status.

    Returns:
        0 done, 1 unexpected, 2 usage or configuration, 4 refused by AWS, 5 job failed, 6 timed out, 130 interrupted.
    """
    try:
        cli.main(args=arguments, prog_name="python -m launcher", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return ConfigError.exit_code
    except Detached as error:
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

"""The verb `invoke`: one request, many that are measured, a stream, or one that is queued."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands.options import Options, common_options, load_settings, open_project, show, show_call
from launcher.errors import AwsRefused, ConfigError

if TYPE_CHECKING:
    from launcher.invoke import Mode, Request
    from launcher.load.measure import Measurement
    from launcher.project import Project
    from launcher.settings import Settings


def request_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what is sent, and to what behind an endpoint."""
    options = (
        click.option("--content-type", help="Default: by the file's ending."),
        click.option("--accept", help="Content type of the answer."),
        click.option("--target-variant", help="This variant, instead of those the weights choose."),
        click.option("--target-model", help="Archive below the prefix of a multi-model endpoint."),
        click.option("--target-container", help="One of several containers in direct mode."),
        click.option("--component", help="One of the endpoint's inference components, as launcher.yaml names it."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--endpoint", help="Its name (default: the project's).")
@request_options
@click.option("--session-id", help="NEW_SESSION, or the id that its answer named.")
@click.option("--stream", is_flag=True, help="Print the answer's parts as they come.")
@click.option("--timeout", default="15m", show_default=True, help="How long to wait for an asynchronous answer.")
@click.option("--repeat", type=click.IntRange(min=1), default=1, help="Send it so many times and measure.")
@click.option("--concurrency", type=click.IntRange(min=1), default=1, help="Requests under way at once.")
@common_options
def invoke(options: Options, file: Path, **given: Any) -> None:
    """Send FILE to the endpoint and print the answer; "-" reads standard input."""
    from launcher.console import show_log
    from launcher.jobs.endpoint import endpoint_name

    show_log(sys.stderr)  # standard output is the answer's, byte by byte
    settings = load_settings(options)
    name = given["endpoint"] or endpoint_name(settings.config)
    if options.dry_run:
        operation = "InvokeEndpointAsync" if settings.config.endpoint.asynchronous else "InvokeEndpoint"
        return show_call(options, operation, {"EndpointName": name}, "sagemaker-runtime")
    from launcher import invoke as invoking

    targets = {key: given[key] for key in ("target_variant", "target_model", "target_container", "session_id")}
    targets["component"] = component_asked(settings, name, given["component"])
    content_type = given["content_type"] or invoking.content_type_of(file)
    request = invoking.Request(name, read_body(file), content_type, given["accept"], **targets)
    project = open_project(settings, options)
    mode = mode_of(project, name)
    invoking.check_size(request, mode)
    refuse_what_does_not_go_together(mode, given)
    if mode == "asynchronous":
        return invoke_queued(options, project, request, given["timeout"])
    if given["repeat"] > 1:
        from launcher.load.measure import measure

        return show_measurement(options, measure(project.aws, request, given["repeat"], given["concurrency"]))
    if given["stream"]:
        return write_bytes(invoking.stream(project.aws, request))
    answer = invoking.invoke(project.aws, request)
    if options.json:
        result = {"body": answer.body.decode("utf-8", "replace"), "content_type": answer.content_type}
        more = {"variant": answer.variant, "seconds": round(answer.seconds, 4), "session_id": answer.session_id}
        return show(options, {**result, **more}, [])
    return write_bytes([answer.body])


def mode_of(project: "Project", name: str) -> "Mode":
    """How the endpoint is asked; the configuration's word where the caller may not look at it."""
    from launcher import invoke as invoking
    from launcher.jobs.endpoint import endpoint_name

    try:
        return invoking.mode_of(project.aws, name)
    except AwsRefused as error:
        if error.code not in {"AccessDenied", "AccessDeniedException"}:
            raise
    section = project.config.endpoint
    if name != endpoint_name(project.config):
        return "real-time"
    return "asynchronous" if section.asynchronous else "serverless" if section.serverless else "real-time"


def refuse_what_does_not_go_together(mode: "Mode", given: dict[str, Any]) -> None:
    """An option that would be left out unseen is an error.

    Raises:
        ConfigError: which, and why.
    """
    many = given["repeat"] > 1 or given["concurrency"] > 1
    if mode == "asynchronous" and (many or given["stream"]):
        raise ConfigError("the endpoint is asynchronous: --repeat, --concurrency and --stream are for answers at once")
    if many and given["stream"]:
        raise ConfigError("--stream prints one answer and --repeat measures many; leave one of them out")
    if given["concurrency"] > given["repeat"]:
        raise ConfigError(f"--concurrency {given['concurrency']} needs --repeat of at least as many")


def component_asked(settings: "Settings", endpoint: str, asked: str | None) -> str | None:
    """InferenceComponentName of a component: the one asked for, or the only one that there is.

    Raises:
        ConfigError: the endpoint has several, and none was named.
    """
    from launcher.jobs.components import component_name
    from launcher.jobs.endpoint import endpoint_name

    components = [item.name for item in settings.config.endpoint.components]
    if endpoint != endpoint_name(settings.config):
        return asked  # of another project: the API's own name
    if components and asked is None and len(components) > 1:
        raise ConfigError(f"the endpoint has several components; say which: --component {' or '.join(components)}")
    chosen = asked or next(iter(components), None)
    return component_name(settings.config, chosen) if chosen else None


def invoke_queued(options: Options, project: "Project", request: "Request", timeout: str) -> None:
    """Send a request to an asynchronous endpoint and print where the answer lies, or the answer."""
    from launcher.config.values import parse_duration
    from launcher.invoke import invoke_async
    from launcher.jobs.common import project_uri

    try:
        seconds = None if options.no_wait else float(str(parse_duration(timeout)))
    except ValueError as error:
        raise ConfigError(f"--timeout: {error}") from error
    folder = project_uri(project.config, project.context(), "async", request.endpoint, "input")
    location, answer = invoke_async(project.aws, request, folder, seconds)
    if answer is None or options.json:
        body = None if answer is None else answer.decode("utf-8", "replace")
        return show(options, {"output": location, "body": body}, [f"-> queued; the answer will lie at {location}"])
    return write_bytes([answer])


def write_bytes(parts: Iterable[bytes]) -> None:
    """Print an answer as it is, part by part, and end its last line."""
    sys.stdout.flush()
    last = b""
    for part in parts:
        sys.stdout.buffer.write(part)
        sys.stdout.buffer.flush()
        last = part or last
    if not last.endswith(b"\n"):
        sys.stdout.buffer.write(b"\n")
        sys.stdout.buffer.flush()


def show_measurement(options: Options, measured: "Measurement") -> None:
    """Print latencies, throughput and errors, and the distribution as bars."""
    from launcher.load.measure import histogram_lines

    times = measured.latencies
    failed = ", ".join(f"{count} x {kind}" for kind, count in measured.errors.items())
    lines = [
        f"-> {times.requests} requests, {sum(measured.errors.values())} errors, {times.requests_per_second:.1f}/s, "
        f"p50 {times.p50_ms:.1f} ms, p90 {times.p90_ms:.1f} ms, p99 {times.p99_ms:.1f} ms, max {times.max_ms:.1f} ms",
        *([f"   errors: {failed}; the first: {measured.problem}"] if failed else []),
        *histogram_lines(measured.histogram),
    ]
    histogram = [asdict(item) for item in measured.histogram]
    show(options, {**asdict(times), "errors": measured.errors, "histogram": histogram}, lines)


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

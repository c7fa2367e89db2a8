"""`launcher check [IMAGE]`."""

import json
import shutil
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.errors import ConfigError, JobFailed

if TYPE_CHECKING:
    from launcher.check.materials import Materials
    from launcher.check.suite import Result
    from launcher.check.target import Target

DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("image", required=False)
@click.option("--only", default="", metavar="GROUP,...", help="train, serve, batch, mme, multi, stop, limits, image.")
@click.option("--role", "roles", multiple=True, type=click.Choice(["train", "serve"]), help="What the image can do.")
@click.option("--model", type=DIRECTORY, help="A model directory, as unpacked into the container.")
@click.option("--request", "request_file", type=FILE, help="A request that this model answers.")
@click.option("--content-type", default="application/json", show_default=True, help="Of the request.")
@click.option("--slow-request", type=FILE, help="A request that takes a few seconds.")
@click.option("--out-of-memory-model", type=DIRECTORY, help="A model that does not fit into memory.")
@click.option("--train-data", multiple=True, type=DIRECTORY, help="Data of a channel; one per --channel.")
@click.option("--channel", multiple=True, help="The channel's name (train).")
@click.option("--hyperparameter", multiple=True, metavar="NAME=VALUE", help="For a job of seconds.")
@click.option("--long-hyperparameter", multiple=True, metavar="NAME=VALUE", help="Added for a job of minutes.")
@click.option("--startup-seconds", default=480, show_default=True, help="How long /ping may take to become 200.")
@click.option("--junit", type=click.Path(dir_okay=False, path_type=Path), help="Write the results as JUnit XML.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
@click.option("--strict", is_flag=True, help="Exit with 5 for a failed S (should) as well as for an M (must).")
def check(image: str | None, **options: Any) -> None:
    """Test IMAGE against the SageMaker container contract; without IMAGE, our own code as plain processes.

    Exit status 5 where the contract is broken. What cannot be told on this machine, or without --model, --request and
    the like, is "not judged", never a pass.
    """
    from launcher.check.report import as_json, as_junit, ending

    directory = Path(tempfile.mkdtemp(prefix="slipway-check-"))
    try:
        target = open_target(image)
        click.echo(f"{target.name} against the SageMaker container contract", err=options["as_json"])
        results = run(target, options, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options["junit"]:
        options["junit"].write_bytes(as_junit(target.name, results))
    if options["as_json"]:
        click.echo(json.dumps(as_json(target.name, results), indent=2))
    else:
        click.echo(ending(results))
    if any(result.breaks_the_contract or (options["strict"] and result.failed) for result in results):
        sys.exit(JobFailed.exit_code)


def open_target(image: str | None) -> "Target":
    """The image, or our own code.

    Raises:
        ConfigError: there is no such image here.
    """
    from launcher.check.docker_target import DockerError, DockerTarget, docker
    from launcher.check.process_target import ProcessTarget

    if image is None:
        return ProcessTarget((sys.executable, "-m", "container"))
    try:
        docker("image", "inspect", image)
    except DockerError as error:
        raise ConfigError(f"image {image!r} cannot be tested: {error}; build it or `docker pull` it first") from error
    return DockerTarget(image)


def run(target: "Target", options: dict[str, Any], directory: Path) -> "list[Result]":
    """Prepare the materials and run the checks that were asked for.

    Raises:
        ConfigError: an option is wrong.
    """
    from launcher.check.bench import Bench
    from launcher.check.materials import Patience
    from launcher.check.report import line
    from launcher.check.suite import run_checks
    from launcher.check.table import GROUPS, IMAGE, MME, roles_of, select

    only = tuple(name.strip() for name in options["only"].split(",") if name.strip())
    if unknown := set(only) - set(GROUPS):
        raise ConfigError(f"--only {min(unknown)!r} is no group of checks; there are {', '.join(GROUPS)}")
    given = read_materials(options, multi_model=MME in only)
    roles = find_roles(target, options["roles"] or roles_of(only), given)
    checks = select(only, roles)
    if not checks:
        raise ConfigError(f"no check of --only {options['only']} fits an image that can {' and '.join(roles)}")
    needed = roles if any(check.role == IMAGE for check in checks) else {check.needs for check in checks}
    materials = complete(target, given, directory, needed)
    bench = Bench(target, materials, directory, roles, Patience(startup=options["startup_seconds"]))
    try:
        return run_checks(checks, bench, lambda result: click.echo(line(result), err=options["as_json"]))
    finally:
        bench.close()


def read_materials(options: dict[str, Any], multi_model: bool) -> "Materials":
    """What the user gave.

    Raises:
        ConfigError: an option is wrong.
    """
    from launcher.check.http import Request
    from launcher.check.materials import Materials

    channels = options["channel"] or (("train",) if len(options["train_data"]) == 1 else ())
    if len(channels) != len(options["train_data"]):
        raise ConfigError(f"{len(options['train_data'])} --train-data and {len(channels)} --channel: give one of each")
    request, slow = options["request_file"], options["slow_request"]
    content_type = options["content_type"]
    return Materials(
        model=options["model"] and options["model"].absolute(),
        request=Request(request.read_bytes(), content_type) if request else None,
        slow_request=Request(slow.read_bytes(), content_type) if slow else None,
        out_of_memory_model=options["out_of_memory_model"] and options["out_of_memory_model"].absolute(),
        channels={name: path.absolute() for name, path in zip(channels, options["train_data"], strict=True)},
        hyperparameters=_pairs(options["hyperparameter"]),
        long_hyperparameters=_pairs(options["long_hyperparameter"]),
        multi_model=multi_model,
    )


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise ConfigError(f"{text!r} is not NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)


def find_roles(target: "Target", asked: tuple[str, ...], given: "Materials") -> tuple[str, ...]:
    """What the image can do: as one of ours says itself, as the user says, or as the materials suggest.

    Raises:
        ConfigError: none of these tells.
    """
    from launcher.check.bench import SERVE, TRAIN
    from launcher.check.samples import our_role

    if target.is_image and (role := our_role(target)):
        return (role,)
    if asked:
        return asked
    if not target.is_image:
        return (TRAIN, SERVE)
    suggested = ((TRAIN, given.channels or given.hyperparameters), (SERVE, given.model or given.request))
    roles = tuple(role for role, materials in suggested if materials)
    if not roles:
        raise ConfigError(f"what can {target.name} do? say --role train, --role serve, or both")
    return roles


def complete(target: "Target", given: "Materials", directory: Path, roles: Collection[str]) -> "Materials":
    """For our own images and code: a model, data and requests where the user gave none.

    Raises:
        JobFailed: our container cannot make its sample model.
    """
    from launcher.check.bench import SERVE, TRAIN
    from launcher.check.samples import our_role, serving_materials, training_materials
    from launcher.check.target import CheckFailed

    if target.is_image and our_role(target) is None:
        return given
    try:
        if TRAIN in roles:
            given = training_materials(directory, given)
        if SERVE in roles:
            given = serving_materials(directory, given, target)
    except CheckFailed as failure:
        raise JobFailed(str(failure)) from failure
    return given

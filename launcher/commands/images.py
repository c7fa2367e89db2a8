"""Verbs about images."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.commands.options import (
    IMAGES_FILE,
    LOCAL_HOME,
    Options,
    command,
    common_options,
    load_settings,
    open_project,
    show,
    show_call,
)
from launcher.errors import ConfigError, JobFailed

if TYPE_CHECKING:
    from launcher.config.images import Image
    from launcher.settings import Settings

KINDS = click.Choice(["training", "serving", "all"])


def chosen_images(settings: "Settings", kind: str) -> dict[str, "Image"]:
    """The settings of the images a verb is about."""
    kinds = ["training", "serving"] if kind == "all" else [kind]
    return {name: getattr(settings.config.images, name) for name in kinds}


@click.command()
@click.argument("image", type=KINDS, default="all")
@click.option("--remote", is_flag=True, help="In CodeBuild, both images, pushed as well (images.codebuild_project).")
@common_options
def build(options: Options, image: str, remote: bool) -> None:
    """Build the training image, the serving image or both."""
    from launcher.images import build as images

    settings = load_settings(options)
    if remote:
        return build_remotely(options, settings)
    chosen = chosen_images(settings, image)
    common = settings.config.images
    if options.dry_run:
        argv = {kind: images.build_argv(item, settings.directory, common) for kind, item in chosen.items()}
        return show(options, argv, [" ".join(words) for words in argv.values()])
    from launcher.images.registry import pull_newest

    built = {}
    for kind, item in chosen.items():
        cache = pull_newest(open_project(settings, options).aws, item, common.registry) if common.cache else None
        identity = images.build(item, settings.directory, common, cache)
        built[kind] = {"image": images.local_reference(item), "id": identity}
    lines = [f"-> built {item['image']} {item['id'][:19]}" for item in built.values()]
    return show(options, built, [*lines, "next: python -m launcher train --local"])


def build_remotely(options: Options, settings: "Settings") -> None:
    """Start CodeBuild, follow its log and keep the digests it has pushed."""
    project = settings.config.images.codebuild_project
    if options.dry_run:
        return show_call(options, "StartBuild", {"projectName": project}, "codebuild")
    from launcher.images import codebuild

    aws = open_project(settings, options).aws
    build_id = codebuild.start(aws, project)
    if options.no_wait:
        return show(options, {"build": build_id}, [f"-> {build_id}"])
    pushed = codebuild.pushed_images(aws, codebuild.follow(aws, build_id))
    keep_pushed(pushed)
    lines = [f"-> pushed {item['uri']}" for item in pushed.values()]
    return show(options, pushed, [*lines, f"next: {command('train', '', options)}"])


def keep_pushed(pushed: dict[str, Any]) -> None:
    """Note the digests: jobs use them from now on."""
    LOCAL_HOME.mkdir(exist_ok=True)
    (LOCAL_HOME / IMAGES_FILE).write_text(json.dumps(pushed, indent=2))


@click.command()
@click.argument("image", type=KINDS, default="all")
@click.option("--output", type=click.Path(path_type=Path), help="Write what was pushed here, too.")
@common_options
def push(options: Options, image: str, output: Path | None) -> None:
    """Push built images to this account's ECR; jobs use their digests from then on."""
    settings = load_settings(options)
    chosen = chosen_images(settings, image)
    if options.dry_run:
        return show_call(options, "CreateRepository", {"repositoryName": next(iter(chosen.values())).repository}, "ecr")
    from launcher.console import size_text
    from launcher.images.registry import push as push_image

    project = open_project(settings, options)
    record = LOCAL_HOME / IMAGES_FILE
    pushed = json.loads(record.read_text()) if record.exists() else {}
    lines = []
    for kind, item in chosen.items():
        done = push_image(project.aws, item, settings.config.images.registry, project.progress)
        pushed[kind] = {**asdict(done), "region": settings.config.region}
        size = f"{size_text(done.size_bytes)}; new layers: {size_text(done.uploaded_bytes)} uncompressed"
        lines.append(f"-> pushed {done.uri} ({size})")
        keep_pushed(pushed)
    if output:
        output.write_text(json.dumps(pushed, indent=2))
    return show(options, pushed, [*lines, f"next: {command('train', '', options)}"])


@click.group()
def image() -> None:
    """One image: what is in it, and whether SageMaker takes it."""


@image.command("check")
@click.argument("kind", type=KINDS, default="all")
@click.option("--contract", is_flag=True, help="Start them, too, and hold them against SageMaker's contract: minutes.")
@common_options
@click.pass_context
def check_images(context: click.Context, options: Options, kind: str, contract: bool) -> None:
    """Check built images: architecture, entry point, user, size by layer, credentials."""
    if contract and options.json:
        raise ConfigError("--contract has no --json here; `python -m launcher check IMAGE --json` has")
    from launcher.findings import failures, lines
    from launcher.images import build as images
    from launcher.images.check import check_image
    from launcher.images.registry import built

    settings = load_settings(options)
    config = settings.config
    types = {
        "training": config.training.instance_type,
        "serving": [config.endpoint.instance_type, config.transform.instance_type],
    }
    client = images.engine()
    found = {}
    for name, item in chosen_images(settings, kind).items():
        built(client, item)
        found[name] = check_image(client, item, images.local_reference(item), list(dict.fromkeys(types[name])))
    text = [line for name, items in found.items() for line in [f"{name} image", *lines(items)]]
    show(options, {name: [asdict(item) for item in items] for name, items in found.items()}, text)
    failed = [item.check for items in found.values() for item in failures(items)]
    if failed:
        raise JobFailed(f"{len(failed)} checks failed: {', '.join(failed)}")
    if contract:
        hold_against_contract(context, settings, kind)


def hold_against_contract(context: click.Context, settings: "Settings", kind: str) -> None:
    """Start each image as SageMaker does; with which model and data one that is not ours works, its makers know."""
    from launcher.check.command import check
    from launcher.images.build import local_reference

    for name, item in chosen_images(settings, kind).items():
        reference = local_reference(item)
        if {f"images.{name}.dockerfile", f"images.{name}.uri"} & settings.origins.keys():
            click.echo(f"{reference} is your own: python -m launcher check {reference} --help")
        else:
            context.invoke(check, image=reference, roles=("train" if name == "training" else "serve",))

"""Verbs about images."""

import click

from launcher.commands.options import (
    Options,
    common_options,
    load_settings,
    show,
)


@click.command()
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

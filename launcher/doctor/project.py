"""The project's settings, and the images that its local jobs run."""

from collections.abc import Iterator
from typing import Any

from launcher.doctor.engine import Engine
from launcher.doctor.machine import Machine
from launcher.findings import Finding
from launcher.local.client import LOCAL_IMAGES, LOCAL_IMAGES_FIX


def config(machine: Machine) -> tuple[Finding, Any]:
    """Whether `launcher.yaml` is sound; and its settings for the check of its images."""
    file = machine.config or machine.directory / "launcher.yaml"
    if machine.config is None and not file.exists():
        return Finding("config", "ok", f"no launcher.yaml in {machine.directory.resolve()}: defaults hold"), None
    try:
        from launcher.errors import ConfigError
        from launcher.settings import load
    except ImportError as error:
        return Finding("config", "skip", f"{file} cannot be checked: {error}", "make install"), None
    try:
        settings = load(file, machine.overrides, environ=machine.environ)
    except ConfigError as error:
        first, *more = str(error).splitlines()
        rest = f" (and {len(more)} more)" if more else ""
        return Finding("config", "fail", f"{first}{rest}", f"edit {file}"), None
    config = settings.config
    return Finding("config", "ok", f"{file} is valid: project {config.name}, region {config.region}"), settings


def images(machine: Machine, engine: Engine, settings: Any) -> Iterator[Finding]:
    """The images that `--local` runs."""
    if not engine.answers or settings is None:
        return
    from launcher.settings import unnamed_images

    answer = machine.run("docker", "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}\t{{.Size}}")
    there = dict(line.split("\t") for line in answer.stdout.splitlines() if "\t" in line) if answer else {}
    for name, ours in LOCAL_IMAGES.items():
        image = getattr(settings.config.images, name)
        unnamed = name in unnamed_images(settings)
        reference = ours if unnamed else image.uri or f"{image.repository}:{image.tag}"
        if reference in there:
            yield Finding(f"{name} image", "ok", f"{reference}, {there[reference]}")
        else:
            builds = not unnamed and (settings.directory / image.context / image.dockerfile).is_file()
            fix = f"python -m launcher build {name}" if builds else LOCAL_IMAGES_FIX
            yield Finding(f"{name} image", "warn", f"{reference} is not on this machine", fix)

"""`image check`: what SageMaker, or a stranger who pulls it, would find wrong with an image; before it is pushed."""

import io
import logging
import re
import tarfile
from collections.abc import Iterator
from typing import Any

from container.contract import BASE_DIR, SERVERLESS_IMAGE_BYTES
from launcher.account.secrets import secrets_of
from launcher.config.images import Image
from launcher.console import size_text
from launcher.findings import Finding
from launcher.images.registry import INDEXES

logger = logging.getLogger(__name__)

LARGEST_LAYERS = 3
SHELLS = ("/bin/sh", "/bin/bash", "sh", "bash")
ARM_FAMILY = re.compile(r"ml\.(?:[cmrxt]\d+g[dn]?|g5g|inf\d+g|im4gn|is4gen|a1)[a-z]*\.")
# Files that hold credentials, wherever they lie in an image.
SECRET_FILES = re.compile(
    r"(^|/)(\.aws/credentials|\.docker/config\.json|\.netrc|\.pypirc|\.git-credentials|id_(rsa|dsa|ecdsa|ed25519)"
    r"|\.env|\.npmrc|service[-_]account[^/]*\.json|[^/]+\.(p12|pfx))$"
)


def check_image(client: Any, image: Image, reference: str, instance_types: list[str]) -> list[Finding]:
    """Every check of one local image.

    Args:
        client: the Docker engine's.
        image: its settings.
        reference: its name on this machine.
        instance_types: where it is to run.
    """
    found = client.images.get(reference)
    logger.info("   reading every layer of %s; a large image takes a minute", reference)
    attributes = found.attrs
    settings = attributes["Config"]
    return [
        manifest(attributes),
        _architecture(attributes["Architecture"], instance_types),
        _entry_point(settings, image),
        _user(settings.get("User") or ""),
        *_sizes(attributes["Size"], client.api.history(found.id), image),
        _environment(settings.get("Env") or []),
        _history(client.api.history(found.id)),
        _files(layer_names(found.save())),
    ]


def manifest(attributes: dict[str, Any]) -> Finding:
    """Whether a push would send one image; an engine with containerd's store may hold an index of several.

    Args:
        attributes: of `GET /images/{name}/json`; `Descriptor` is there since API 1.48, with containerd's store alone.
    """
    kind = (attributes.get("Descriptor") or {}).get("mediaType", "")
    if kind in INDEXES:
        detail = (
            f"the engine holds an index ({kind}), of several platforms or with attestations; SageMaker takes one image"
        )
        return Finding("manifest", "fail", detail, "docker build --provenance=false --sbom=false, for one platform")
    return Finding("manifest", "ok", "one image, of one platform")


def _architecture(architecture: str, instance_types: list[str]) -> Finding:
    for name in instance_types:
        wanted = "arm64" if ARM_FAMILY.match(name) else "amd64"
        if architecture != wanted:
            fix = f"python -m launcher build --set images.….platform=linux/{wanted}"
            return Finding("architecture", "fail", f"the image is {architecture} and {name} runs {wanted}", fix)
    return Finding("architecture", "ok", f"{architecture}, for {', '.join(instance_types) or 'any instance type'}")


def _entry_point(settings: dict[str, Any], image: Image) -> Finding:
    entry = settings.get("Entrypoint") or []
    if not entry:
        detail = "there is no ENTRYPOINT; SageMaker runs `train` or `serve` itself, which must then be on PATH"
        return Finding("entry point", "warn", detail, 'ENTRYPOINT ["/path/to/python", "-m", "…"]')
    if entry[0] in SHELLS and "-c" in entry:
        detail = "the ENTRYPOINT has the shell form: /bin/sh is process 1 and never passes SIGTERM on"
        return Finding("entry point", "fail", detail, 'write it as a JSON array: ENTRYPOINT ["program", "argument"]')
    if entry[0].rpartition("/")[2] in {"tini", "dumb-init"}:
        detail = f"{entry[0]} is process 1; AWS warns that it misreads the argument"
        return Finding("entry point", "warn", detail, "make the program itself the ENTRYPOINT")
    if not entry[0].startswith("/"):
        return Finding("entry point", "warn", f"{entry[0]} is searched on PATH", "write its absolute path")
    return Finding("entry point", "ok", " ".join(entry))


def _user(user: str) -> Finding:
    if user in {"", "0", "root", "0:0", "root:root"}:
        return Finding("user", "ok", "root, as hosting expects")
    detail = f"USER {user}: hosting expects root, and the files of {BASE_DIR} belong to root"
    return Finding("user", "fail", detail, "remove USER from the Dockerfile")


def _sizes(size: int, history: list[dict[str, Any]], image: Image) -> Iterator[Finding]:
    budget = int(image.max_size_gb * 1e9)
    largest = sorted(history, key=lambda layer: layer["Size"], reverse=True)[:LARGEST_LAYERS]
    parts = "; ".join(f"{size_text(layer['Size'])} {_step(layer)}" for layer in largest if layer["Size"])
    text = f"{size_text(size)} of {size_text(budget)}; largest: {parts or 'none'}"
    if size > budget:
        yield Finding("size", "fail", text, "leave packages out, or raise images.….max_size_gb")
    else:
        yield Finding("size", "ok", text)
    if size > SERVERLESS_IMAGE_BYTES:
        detail = f"{size_text(size)} is above the 10 GB of serverless endpoints"
        yield Finding("serverless size", "warn", detail, "use a CPU build of torch for a serverless image")
    else:
        yield Finding("serverless size", "ok", "below 10 GB")


def _step(layer: dict[str, Any]) -> str:
    text = " ".join(layer.get("CreatedBy", "").split())
    return text.removeprefix("/bin/sh -c ").removeprefix("#(nop) ")[:60]


def _environment(variables: list[str]) -> Finding:
    for variable in variables:
        name, _, value = variable.partition("=")
        if secrets_of("ENV", name, value):
            fix = "give it to the job from Secrets Manager, or to the build as a secret mount"
            return Finding("environment", "fail", f"ENV {name} looks like a credential", fix)
    return Finding("environment", "ok", f"{len(variables)} variables, no credential")


def _history(history: list[dict[str, Any]]) -> Finding:
    for layer in history:
        for word in layer.get("CreatedBy", "").split():
            name, _, value = word.strip("|,\"'").partition("=")
            if value and secrets_of("history", name, value):
                fix = "build arguments stay in the image's history; use a secret mount"
                return Finding("history", "fail", f"the step `{_step(layer)}` has a credential in {name}", fix)
    return Finding("history", "ok", f"{len(history)} steps, no credential")


def _files(names: Iterator[str]) -> Finding:
    under_platform = str(BASE_DIR).lstrip("/")
    count, hidden = 0, ""
    for name in names:
        count += 1
        if SECRET_FILES.search(name):
            fix = "delete it in the step that makes it, or add it to .dockerignore"
            return Finding(
                "files", "fail", f"/{name} holds credentials, and stays in its layer when deleted later", fix
            )
        if name.startswith(f"{under_platform}/") and not hidden:
            hidden = name
    if hidden:
        detail = f"/{hidden} lies where SageMaker mounts its own files, and may be hidden at run time"
        return Finding("files", "warn", detail, f"put code anywhere but {BASE_DIR}")
    return Finding("files", "ok", f"{count} files, none that holds credentials")


def layer_names(archive: Iterator[bytes]) -> Iterator[str]:
    """Names of all files in all layers of a saved image, read as a stream: nothing is stored."""
    with tarfile.open(fileobj=io.BufferedReader(_Chunks(archive)), mode="r|") as outer:
        for member in outer:
            if not member.isreg() or not _is_layer(member.name):
                continue
            content = outer.extractfile(member)
            assert content is not None
            try:
                with tarfile.open(fileobj=content, mode="r|*") as layer:
                    for item in layer:
                        if not item.isdir():
                            yield item.name.removeprefix("./")
            except tarfile.ReadError:
                continue  # a configuration blob of the OCI layout


def _is_layer(name: str) -> bool:
    return name.endswith("layer.tar") or name.startswith("blobs/")


class _Chunks(io.RawIOBase):
    """A stream of chunks as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.rest = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = next(self.chunks, b"")
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count

"""The two images, built as the README says, and a `docker run` that leaves nothing behind."""

import json
import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest


@pytest.fixture(scope="session")
def train_image(built_image) -> str:
    return built_image("train")


@pytest.fixture(scope="session")
def serve_image(built_image) -> str:
    return built_image("serve")


def inspect(image: str) -> dict:
    """`docker image inspect`, parsed."""
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0]


@pytest.fixture
def docker() -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs `docker ARGUMENT ...`; containers started through it are removed afterwards."""
    label = f"slipway-test={uuid.uuid4().hex}"

    def run(*argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command, *rest = argv
        labelled = [command, "--label", label, *rest] if command in ("run", "create") else list(argv)
        return subprocess.run(["docker", *labelled], capture_output=True, text=True, check=check, timeout=timeout)

    yield run
    left = run("ps", "--all", "--quiet", "--filter", f"label={label}").stdout.split()
    if left:
        run("rm", "--force", "--volumes", *left)

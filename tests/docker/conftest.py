"""The two images, built as the README says, and a `docker run` that leaves nothing behind."""

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _build(role: str) -> str:
    base, network = os.environ.get("SLIPWAY_BASE_IMAGE"), os.environ.get("SLIPWAY_BUILD_NETWORK")
    options = [*(["--build-arg", f"BASE_IMAGE={base}"] if base else []), *(["--network", network] if network else [])]
    image = f"slipway-{role}:local"
    argv = ["docker", "build", "--quiet", *options, "-f", f"Dockerfile.{role}", "-t", image, "."]
    done = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        pytest.fail(f"{' '.join(argv)} failed; SLIPWAY_BASE_IMAGE names a base that need not be pulled:\n{done.stderr}")
    return image


@pytest.fixture(scope="session")
def train_image() -> str:
    return _build("train")


@pytest.fixture(scope="session")
def serve_image() -> str:
    return _build("serve")


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

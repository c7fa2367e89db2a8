"""What all tests share: when a Docker test may be skipped, and the one real data set that ships with a package."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """CI runs everything: without an engine its Docker tests fail, they are not skipped."""
    if os.environ.get("CI"):
        return
    if not os.environ.get("SLOW"):
        _skip(items, "slow", "takes long: SLOW=1 make test, or CI, runs it")
    if any(item.get_closest_marker("docker") for item in items):
        reason = _why_no_engine()
        if reason is not None:
            _skip(items, "docker", reason)


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_no_engine() -> str | None:
    if shutil.which("docker") is None:
        return "no docker client on PATH"
    answer = subprocess.run(["docker", "info"], capture_output=True, text=True, timeout=30, check=False)
    if answer.returncode:
        return f"no Docker engine answers: {answer.stderr.strip().splitlines()[-1:]}"
    return None


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCI handwritten digits as image folders: `train/<class>/*.png` and `test/<class>/*.png`, 8x8 grey."""
    from launcher.demo import write_digits

    directory = tmp_path_factory.mktemp("digits")
    write_digits(directory)
    return directory

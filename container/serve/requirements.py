"""`requirements.txt` beside the user's code: satisfied already, installed before the server starts, or refused.

The model directory is read-only and the image's own packages must not change, so packages go into a directory of
their own below the temporary one. Wheels in `code/wheels` are used without a network.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

logger = logging.getLogger(__name__)

REQUIREMENTS_FILE = "requirements.txt"
WHEELS_DIRECTORY = "wheels"
INSTALL_VARIABLE = "SLIPWAY_INSTALL_REQUIREMENTS"
INSTALL_SECONDS = 300  # of the eight minutes in which /ping must become 200
CONNECT_SECONDS = 5  # without a network every index answers with silence


class RequirementsError(Exception):
    """The user's requirements are not there and cannot be installed."""


def missing(text: str) -> list[str]:
    """Lines of a requirements.txt that the environment does not satisfy.

    Options, URLs and included files cannot be judged without pip and count as missing.
    """
    lines = [line.partition(" #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and not _satisfied(line)]


def _satisfied(line: str) -> bool:
    try:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            return True
        return not requirement.url and requirement.specifier.contains(metadata.version(requirement.name), True)
    except (InvalidRequirement, metadata.PackageNotFoundError):
        return False


def pip_argv(code_dir: Path, target: Path) -> list[str]:
    """How pip is called: from the wheels beside the code where there are any, else from the configured index."""
    argv = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
    argv += ["--target", str(target), "--timeout", str(CONNECT_SECONDS), "--retries", "1"]
    wheels = code_dir / WHEELS_DIRECTORY
    if wheels.is_dir():
        argv += ["--no-index", "--find-links", str(wheels)]
    return [*argv, "-r", str(code_dir / REQUIREMENTS_FILE)]


def install_requirements(code_dir: Path, environ: Mapping[str, str]) -> Path | None:
    """Make what `code_dir/requirements.txt` asks for importable; returns the directory to put on the path, if any.

    Raises:
        RequirementsError: something is missing and must not or cannot be installed.
    """
    path = code_dir / REQUIREMENTS_FILE
    if not path.is_file():
        return None
    lacking = missing(path.read_text())
    if not lacking:
        return None
    named = ", ".join(lacking[:8])
    if environ.get(INSTALL_VARIABLE) == "never":
        raise RequirementsError(f"{path} asks for {named}, and {INSTALL_VARIABLE}=never forbids to install it")
    target = Path(tempfile.mkdtemp(prefix="slipway-packages-"))
    logger.info("installing %s from %s", named, path)
    try:
        done = subprocess.run(
            pip_argv(code_dir, target), capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise RequirementsError(f"{path}: {named} was not installed within {INSTALL_SECONDS} s") from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RequirementsError(f"{path}: {named} cannot be installed: {errors[-1] if errors else 'pip failed'}")
    return target


def check_requirements(code_dir: Path) -> None:
    """See that `code_dir/requirements.txt` is satisfied as things are.

    Raises:
        RequirementsError: it is not.
    """
    path = code_dir / REQUIREMENTS_FILE
    lacking = missing(path.read_text()) if path.is_file() else []
    if lacking:
        raise RequirementsError(f"{path.name} asks for {', '.join(lacking[:8])}, which this image does not have")


def put_on_path(target: Path) -> None:
    """Let this process, and what it starts, import from `target`, after the image's own packages."""
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(target)]))

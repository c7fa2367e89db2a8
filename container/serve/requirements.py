"""`requirements.txt` beside the user's code: satisfied already, installed before the server starts, or refused.

The model directory is read-only and the image's own packages must not change, so packages go into a directory of
their own below the temporary one, which is looked at first. pip is asked twice: what is lacking, which leaves out all
that the image has (with `--target` alone it would fetch torch again for a package that needs it), and then for that.
Wheels in `code/wheels` are used without a network.
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

logger = logging.getLogger(__name__)

REQUIREMENTS_FILE = "requirements.txt"
WHEELS_DIRECTORY = "wheels"
INSTALL_VARIABLE = "SLIPWAY_INSTALL_REQUIREMENTS"
INSTALL_SECONDS = 300  # of the eight minutes in which /ping must become 200
CONNECT_SECONDS = 5  # without a network every index answers with silence
PIP = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet"]
PIP += ["--timeout", str(CONNECT_SECONDS), "--retries", "1"]


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


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequirementsError(f"{path} is no UTF-8: {error}") from None


def resolve_argv(code_dir: Path, report: Path) -> list[str]:
    """How pip is asked what is lacking: of the wheels beside the code, if any, else of the configured index."""
    wheels = code_dir / WHEELS_DIRECTORY
    source = ["--no-index", "--find-links", str(wheels)] if wheels.is_dir() else []
    wanted = ["-r", str(code_dir / REQUIREMENTS_FILE)]
    return [*PIP, *source, "--dry-run", "--report", str(report), *wanted]


def install_argv(target: Path, report: Mapping[str, Any]) -> list[str]:
    """How pip installs exactly what its report found lacking."""
    found = [_pinned(item["metadata"]["name"], item["download_info"]) for item in report["install"]]
    return [*PIP, "--no-deps", "--target", str(target), *found]


def _pinned(name: str, source: Mapping[str, Any]) -> str:
    """A requirement for the very file that pip found ("Direct URL Data Structure", packaging.python.org)."""
    if "vcs_info" in source:
        version_control = source["vcs_info"]
        return f"{name} @ {version_control['vcs']}+{source['url']}@{version_control['commit_id']}"
    digest = source.get("archive_info", {}).get("hash", "")
    return f"{name} @ {source['url']}" + (f"#{digest}" if digest else "")


def install_requirements(code_dir: Path, environ: Mapping[str, str]) -> Path | None:
    """Make what `code_dir/requirements.txt` asks for importable; returns the directory to put on the path, if any.

    Raises:
        RequirementsError: something is missing and must not or cannot be installed.
    """
    path = code_dir / REQUIREMENTS_FILE
    if not path.is_file():
        return None
    lacking = missing(_read(path))
    if not lacking:
        return None
    named = ", ".join(lacking[:8])
    if environ.get(INSTALL_VARIABLE) == "never":
        raise RequirementsError(f"{path} asks for {named}, and {INSTALL_VARIABLE}=never forbids to install it")
    logger.info("installing %s from %s", named, path)
    target = Path(tempfile.mkdtemp(prefix="slipway-packages-"))
    report = target / "report.json"
    until = time.monotonic() + INSTALL_SECONDS
    try:
        _run(resolve_argv(code_dir, report), until)
        found = json.loads(report.read_text())
        if not found["install"]:  # an included file of requirements that are all met
            return None
        _run(install_argv(target, found), until)
    except subprocess.TimeoutExpired:
        raise RequirementsError(f"{path}: {named} was not installed within {INSTALL_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        raise RequirementsError(f"{path}: {named} cannot be installed: {_reason(error.stderr)}") from None
    return target


def _reason(said: str) -> str:
    """Why, of all that pip said: where it reached no index it ends with `No matching distribution found`."""
    if broken := re.search(r"after connection broken by '(?:.*: )?(.+?)['\")]*': /", said):
        return f"the container reaches no package index: {broken[1]}"
    lines = said.splitlines()
    return ([line for line in lines if line.startswith("ERROR")] or lines or ["pip failed"])[-1]


def _run(argv: list[str], until: float) -> None:
    subprocess.run(argv, capture_output=True, text=True, timeout=until - time.monotonic(), check=True)


def check_requirements(code_dir: Path) -> None:
    """See that `code_dir/requirements.txt` is satisfied as things are.

    Raises:
        RequirementsError: it is not.
    """
    path = code_dir / REQUIREMENTS_FILE
    lacking = missing(_read(path)) if path.is_file() else []
    if lacking:
        raise RequirementsError(f"{path.name} asks for {', '.join(lacking[:8])}, which this image does not have")


def put_on_path(target: Path) -> None:
    """Let this process, and what it starts, import from `target`, before the image's own packages."""
    sys.path.insert(0, str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(target), os.environ.get("PYTHONPATH")]))

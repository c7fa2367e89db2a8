"""This machine itself: Python and its packages, disk, memory, cores, a port."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container.contract import DEFAULT_PORT
from launcher.findings import Finding

OLDEST_PYTHON = (3, 11)
CLIENT_SECONDS = 5.0  # an engine or driver that needs longer does not answer
GIGABYTE = 1e9
# Both images take about 15 GB with the layers they share, and a build as much again (docs/images.md).
DISK_GIGABYTES = {"fail": 2, "warn": 30}
MEMORY_GIGABYTES = {"fail": 1, "warn": 4}  # importing torch and training a small model needs about 2
NEEDED_PACKAGES = ("boto3", "click", "docker", "moto", "pydantic", "rich", "sagemaker", "waitress", "yaml")


@dataclass(frozen=True)
class Machine:
    """What is looked at; tests point it elsewhere."""

    environ: Mapping[str, str]
    directory: Path = Path()
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")
    port: int = DEFAULT_PORT
    packages: tuple[str, ...] = NEEDED_PACKAGES
    python: tuple[int, ...] = tuple(sys.version_info[:3])

    def run(self, *argv: str) -> subprocess.CompletedProcess[str] | None:
        """What a client on the PATH answers; None where it is missing or does not answer."""
        path = shutil.which(argv[0], path=self.environ.get("PATH", ""))
        if path is None:
            return None
        try:
            return subprocess.run(
                [path, *argv[1:]],
                env=dict(self.environ),
                capture_output=True,
                text=True,
                timeout=CLIENT_SECONDS,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError):
            return None


def python(machine: Machine) -> Finding:
    """Its version."""
    version = ".".join(map(str, machine.python))
    if machine.python < OLDEST_PYTHON:
        fix = "install Python 3.11 or newer, then: make PYTHON=python3.12"
        return Finding("python", "fail", f"{version} is too old", fix)
    return Finding("python", "ok", f"{version} ({sys.executable})")


def packages(machine: Machine) -> Finding:
    """What the launcher imports, and torch for jobs without containers."""
    missing = [name for name in machine.packages if importlib.util.find_spec(name) is None]
    if missing:
        fix = 'make install, or pip install ".[launcher]"'
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", fix)
    if importlib.util.find_spec("torch") is None:
        return Finding("packages", "ok", "all there; without torch, local jobs run in containers only")
    return Finding("packages", "ok", "all there, torch included")


def disk(directory: Path) -> list[Finding]:
    """Room for data and artifacts."""
    free = shutil.disk_usage(directory).free / GIGABYTE
    status = grade(free, DISK_GIGABYTES)
    fix = "" if status == "ok" else "docker system prune, or another disk"
    return [Finding("disk", status, f"{free:.0f} GB free in {directory.resolve()}", fix)]


def memory(machine: Machine) -> list[Finding]:
    """What is available now, or this container's limit."""
    try:
        text = (machine.proc / "meminfo").read_text()
    except OSError:
        return []  # not Linux
    available = int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024 / GIGABYTE
    limit = _limit(machine.cgroup / "memory.max")
    note = ""
    if limit is not None and limit / GIGABYTE < available:
        available, note = limit / GIGABYTE, " (this container's limit)"
    status = grade(available, MEMORY_GIGABYTES)
    fix = "" if status == "ok" else "close something, or train with a smaller batch_size and num_workers: 0"
    return [Finding("memory", status, f"{available:.1f} GB available{note}", fix)]


def cores(machine: Machine) -> Finding:
    """Those that this process may use."""
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _quota(machine.cgroup / "cpu.max")
    cores = min(count, quota or count)
    if cores < 2:
        detail = f"{cores:g}: the hosts of a local job take turns"
        return Finding("cores", "warn", detail, "--set training.instance_count=1 is faster here")
    return Finding("cores", "ok", f"{cores:g}")


def _limit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return int(quota) / int(period) if quota.isdigit() else None


def port(machine: Machine) -> Finding:
    """The one that `docker run -p` of a serving image takes."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", machine.port))
        except OSError as error:
            detail = f"{machine.port} is taken: {error.strerror}"
            fix = f"only `docker run -p {machine.port}:{machine.port}` needs it: take another host port"
            return Finding("port", "warn", detail, fix)
    return Finding("port", "ok", f"{machine.port} is free")


def grade(value: float, bounds: Mapping[str, float]) -> Any:
    """`ok`, or `warn` or `fail` below that bound."""
    return "fail" if value < bounds["fail"] else "warn" if value < bounds["warn"] else "ok"

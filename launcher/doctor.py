"""Looks at this machine: what is there, what is missing, and what to do about it.

Standard library only, so that `python -m launcher.doctor` works where nothing is installed yet. It asks the engine and
the driver through their own clients, sends nothing anywhere, and changes nothing; `fix` removes what is certainly ours
and certainly dead.
"""

import configparser
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from container.contract import DEFAULT_PORT
from launcher.findings import Finding, failures, lines
from launcher.local.client import HOME_LABEL, LOCAL_IMAGES, LOCAL_IMAGES_FIX, is_alive

OLDEST_PYTHON = (3, 11)
CLIENT_SECONDS = 5.0  # an engine or driver that needs longer does not answer
GIGABYTE = 1e9
# Both images take about 15 GB with the layers they share, and a build as much again (docs/images.md).
DISK_GIGABYTES = {"fail": 2, "warn": 30}
MEMORY_GIGABYTES = {"fail": 1, "warn": 4}  # importing torch and training a small model needs about 2
NEEDED_PACKAGES = ("boto3", "click", "docker", "moto", "pydantic", "rich", "sagemaker", "waitress", "yaml")
ROLE_VARIABLES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
# CUDA's major version -> oldest driver that runs it natively ("CUDA Compatibility", minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


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


@dataclass(frozen=True)
class Engine:
    """The Docker engine, as far as it answered."""

    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> bool:
        return bool(self.info.get("ServerVersion"))


def doctor(machine: Machine) -> list[Finding]:
    """Every check of this machine, in the order in which to mend what is wrong."""
    found = [_python(machine), _packages(machine), *_disk(machine.directory), *_memory(machine), _cores(machine)]
    docker, engine = _docker(machine)
    found += [*docker, *_engine_disk(engine), *_gpu(machine, engine), *_leftovers(machine, engine)]
    configured, settings = _config(machine)
    found += [configured, *_images(machine, engine, settings), *_credentials(machine), *_endpoint(machine)]
    return [*found, _port(machine)]


def _python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if machine.python < OLDEST_PYTHON:
        fix = "install Python 3.11 or newer, then: make PYTHON=python3.12"
        return Finding("python", "fail", f"{version} is too old", fix)
    return Finding("python", "ok", f"{version} ({sys.executable})")


def _packages(machine: Machine) -> Finding:
    missing = [name for name in machine.packages if importlib.util.find_spec(name) is None]
    if missing:
        fix = 'make install, or pip install ".[launcher]"'
        return Finding("packages", "fail", f"missing: {', '.join(missing)}", fix)
    if importlib.util.find_spec("torch") is None:
        return Finding("packages", "ok", "all there; without torch, local jobs run in containers only")
    return Finding("packages", "ok", "all there, torch included")


def _disk(directory: Path) -> list[Finding]:
    free = shutil.disk_usage(directory).free / GIGABYTE
    status = _grade(free, DISK_GIGABYTES)
    fix = "" if status == "ok" else "docker system prune, or another disk"
    return [Finding("disk", status, f"{free:.0f} GB free in {directory.resolve()}", fix)]


def _engine_disk(engine: Engine) -> list[Finding]:
    root = Path(engine.info.get("DockerRootDir") or "/nowhere")
    try:
        free = shutil.disk_usage(root).free / GIGABYTE
    except OSError:  # in a virtual machine, or not ours to look at
        return []
    status = _grade(free, DISK_GIGABYTES)
    fix = "" if status == "ok" else "docker system prune --all, or move the engine's data-root"
    return [Finding("engine disk", status, f"{free:.0f} GB free in {root}", fix)]


def _leftovers(machine: Machine, engine: Engine) -> list[Finding]:
    orphans = orphaned_containers(machine) if engine.answers else []
    if not orphans:
        return []
    detail = f"{len(orphans)} containers of local SageMakers that died"
    return [Finding("leftovers", "warn", detail, "python -m launcher doctor --fix")]


def orphaned_containers(machine: Machine) -> list[str]:
    """Ids of containers that a local SageMaker of this machine started, and that it can end no more.

    One whose home is not here may belong to a server elsewhere, on the same engine: it is left alone.
    """
    names = f'{{{{.ID}}}}\t{{{{.Label "{HOME_LABEL}"}}}}'
    listed = machine.run("docker", "ps", "--all", "--no-trunc", "--filter", f"label={HOME_LABEL}", "--format", names)
    pairs = [line.split("\t") for line in (listed.stdout if listed and not listed.returncode else "").splitlines()]
    return [identity for identity, home in pairs if Path(home).is_dir() and not is_alive(Path(home))]


def fix(machine: Machine) -> list[str]:
    """Remove what is certainly ours and certainly dead; what was done, a line each."""
    orphans = orphaned_containers(machine)
    if not orphans:
        return ["nothing to mend"]
    done = machine.run("docker", "rm", "--force", *orphans)
    if done is None or done.returncode:
        return [f"{len(orphans)} containers could not be removed: {done.stderr.strip() if done else 'no answer'}"]
    return [f"removed {len(orphans)} containers of local SageMakers that died"]


def _grade(value: float, bounds: Mapping[str, float]) -> Any:
    return "fail" if value < bounds["fail"] else "warn" if value < bounds["warn"] else "ok"


def _memory(machine: Machine) -> list[Finding]:
    try:
        text = (machine.proc / "meminfo").read_text()
    except OSError:
        return []  # not Linux
    available = int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024 / GIGABYTE
    limit = _limit(machine.cgroup / "memory.max")
    note = ""
    if limit is not None and limit / GIGABYTE < available:
        available, note = limit / GIGABYTE, " (this container's limit)"
    status = _grade(available, MEMORY_GIGABYTES)
    fix = "" if status == "ok" else "close something, or train with a smaller batch_size and num_workers: 0"
    return [Finding("memory", status, f"{available:.1f} GB available{note}", fix)]


def _cores(machine: Machine) -> Finding:
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


def _docker(machine: Machine) -> tuple[list[Finding], Engine]:
    if shutil.which("docker", path=machine.environ.get("PATH", "")) is None:
        fix = "install Docker to run the images; without it, local jobs run as plain processes"
        return [Finding("docker", "warn", "no docker client on PATH", fix)], Engine()
    answer = machine.run("docker", "info", "--format", "{{json .}}")
    engine = Engine(_json_object(answer.stdout) if answer else {})
    if not engine.answers:
        reason = _engine_reason(answer, engine)
        fix = (
            "add yourself to the group docker and log in again"
            if "permission denied" in reason
            else "start it (systemctl start docker, or Docker Desktop); without it, local jobs run as plain processes"
        )
        return [Finding("docker", "warn", f"no engine answers: {reason}", fix)], engine
    kind = f"{engine.info.get('OSType')}/{engine.info.get('Architecture')}"
    detail = f"engine {engine.info['ServerVersion']}, {kind}, {engine.info.get('NCPU')} cores"
    if engine.info.get("Architecture") not in {"x86_64", "amd64"}:
        fix = "SageMaker's GPU machines are amd64: `build` asks for linux/amd64, which is emulated and slow here"
        return [Finding("docker", "warn", detail, fix)], engine
    return [Finding("docker", "ok", detail)], engine


def _engine_reason(answer: subprocess.CompletedProcess[str] | None, engine: Engine) -> str:
    if answer is None:
        return f"nothing in {CLIENT_SECONDS:.0f} s"
    said = engine.info.get("ServerErrors") or answer.stderr.strip().splitlines() or ["no reason given"]
    return said[0]


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _gpu(machine: Machine, engine: Engine) -> Iterator[Finding]:
    answer = machine.run("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if answer is None or answer.returncode:
        if (machine.proc / "driver" / "nvidia" / "version").exists():
            yield Finding("gpu", "fail", "there is a driver and nvidia-smi does not answer", "reload or reinstall it")
        else:
            yield Finding("gpu", "ok", "none: training and serving run on the CPU here")
        return
    gpus = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
    driver = int(re.findall(r", (\d+)\.", gpus[0])[0])
    newest = max(OLDEST_DRIVER)
    if driver < OLDEST_DRIVER[newest]:
        yield Finding(
            "gpu",
            "warn",
            f"{len(gpus)} x {gpus[0]}: CUDA {newest} wants driver {OLDEST_DRIVER[newest]}",
            "update the driver; on a data-centre GPU the image's compat libraries do instead",
        )
    else:
        yield Finding("gpu", "ok", f"{len(gpus)} x {gpus[0]}")
    if engine.answers and "nvidia" not in (engine.info.get("Runtimes") or {}):
        fix = "install nvidia-container-toolkit, then: nvidia-ctk runtime configure && systemctl restart docker"
        yield Finding("gpu in docker", "warn", "the engine has no nvidia runtime", fix)


def _config(machine: Machine) -> tuple[Finding, Any]:
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


def _images(machine: Machine, engine: Engine, settings: Any) -> Iterator[Finding]:
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


def _credentials(machine: Machine) -> Iterator[Finding]:
    environ = machine.environ
    if environ.get("AWS_ACCESS_KEY_ID"):
        if not environ.get("AWS_SECRET_ACCESS_KEY"):
            detail = "AWS_ACCESS_KEY_ID is set and AWS_SECRET_ACCESS_KEY is not"
            yield Finding("credentials", "fail", detail, "set both, or neither and AWS_PROFILE")
        else:
            yield Finding("credentials", "ok", "in the environment (AWS_ACCESS_KEY_ID)")
        return
    given = [name for name in ROLE_VARIABLES if environ.get(name)]
    if given:
        yield Finding("credentials", "ok", f"of a role ({given[0]})")
        return
    yield _profile(machine)


def _profile(machine: Machine) -> Finding:
    home = Path(machine.environ.get("HOME") or "~").expanduser()
    files = [
        Path(machine.environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials"),
        Path(machine.environ.get("AWS_CONFIG_FILE") or home / ".aws" / "config"),
    ]
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(files)
    except configparser.Error as error:
        return Finding("credentials", "fail", " ".join(str(error).split()), f"edit {files[0]} or {files[1]}")
    profiles = {name.removeprefix("profile ").strip() for name in parser.sections()}
    wanted = machine.environ.get("AWS_PROFILE")
    if wanted and wanted not in profiles:
        known = f"; there are: {', '.join(sorted(profiles))}" if profiles else ""
        detail = f"AWS_PROFILE={wanted} is in neither {files[0]} nor {files[1]}{known}"
        return Finding("credentials", "fail", detail, f"aws configure --profile {wanted}, or unset AWS_PROFILE")
    if wanted or "default" in profiles:
        return Finding("credentials", "ok", f"profile {wanted or 'default'}")
    if profiles:
        detail = f"no default profile; there are: {', '.join(sorted(profiles))}"
        return Finding("credentials", "warn", detail, "set AWS_PROFILE")
    return Finding("credentials", "warn", "none; --local, --dry-run and demo need none", "for AWS: aws configure sso")


def _endpoint(machine: Machine) -> Iterator[Finding]:
    url = machine.environ.get("AWS_ENDPOINT_URL")
    if not url:
        return
    parts = urlsplit(url)
    if parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
        yield Finding("endpoint", "warn", f"every AWS request goes to {url}", "unset AWS_ENDPOINT_URL to reach AWS")
        return
    try:
        socket.create_connection((parts.hostname, parts.port or 80), timeout=1).close()
    except OSError:
        detail = f"AWS_ENDPOINT_URL={url} and nobody listens there"
        yield Finding("endpoint", "fail", detail, "python -m launcher local up, or unset AWS_ENDPOINT_URL")
    else:
        yield Finding("endpoint", "ok", f"every AWS request goes to the local server at {url}")


def _port(machine: Machine) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", machine.port))
        except OSError as error:
            detail = f"{machine.port} is taken: {error.strerror}"
            fix = f"only `docker run -p {machine.port}:{machine.port}` needs it: take another host port"
            return Finding("port", "warn", detail, fix)
    return Finding("port", "ok", f"{machine.port} is free")


def main() -> int:
    """`python -m launcher.doctor`: the checks as lines; 1 if one failed."""
    found = doctor(Machine(os.environ))
    sys.stdout.write("\n".join(lines(found)) + "\n")
    return 1 if failures(found) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The Docker engine: whether it answers, its disk, GPUs, and what a local SageMaker that died left in it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.doctor.machine import CLIENT_SECONDS, DISK_GIGABYTES, GIGABYTE, Machine, grade
from launcher.findings import Finding
from launcher.local.client import HOME_LABEL, is_alive

# CUDA's major version -> oldest driver that runs it natively ("CUDA Compatibility", minor version compatibility).
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}


@dataclass(frozen=True)
class Engine:
    """The Docker engine, as far as it answered."""

    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> bool:
        return bool(self.info.get("ServerVersion"))


def docker(machine: Machine) -> tuple[list[Finding], Engine]:
    """Whether an engine answers, and of which processor; and the engine for the checks below."""
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


def engine_disk(engine: Engine) -> list[Finding]:
    """Room where the engine keeps its images."""
    root = Path(engine.info.get("DockerRootDir") or "/nowhere")
    try:
        free = shutil.disk_usage(root).free / GIGABYTE
    except OSError:  # in a virtual machine, or not ours to look at
        return []
    status = grade(free, DISK_GIGABYTES)
    fix = "" if status == "ok" else "docker system prune --all, or move the engine's data-root"
    return [Finding("engine disk", status, f"{free:.0f} GB free in {root}", fix)]


def gpu(machine: Machine, engine: Engine) -> Iterator[Finding]:
    """GPUs, their driver, and whether containers get them."""
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


def leftovers(machine: Machine, engine: Engine) -> list[Finding]:
    """Containers whose local SageMaker is dead."""
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

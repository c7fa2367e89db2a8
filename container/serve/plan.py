"""How the server runs on this machine: processes, threads, limits. Deciding is pure; `read_machine` looks."""

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from container import contract
from container.serve.memory import limit_of_cgroup

GIB = 1024**3
KEEP_ALIVE_SECONDS = 75  # longer than the 60 to 65 s a platform proxy may keep an idle connection for reuse
GRACEFUL_SECONDS = 25  # SageMaker sends SIGKILL 30 s after SIGTERM
PATIENCE_SECONDS = 60  # beyond the hour that batch and asynchronous requests may take: the platform's clock decides
BACKLOG = 2048  # a connect must succeed within 250 ms however busy the processes are
MAX_QUEUE = 1000  # MaxConcurrentInvocationsPerInstance's maximum: what the platform may have in flight here
MAX_REQUEST_BYTES = GIB  # an asynchronous endpoint's payload; nothing tells the container which kind it serves
PROCESS_BYTES = 900 * 1024**2  # a process with torch, warm: 450 to 650 MB measured; so that 2 GB hold one (C143)
HEAVY_ARTIFACT_BYTES = 16 * 1024**2  # above, the network's forward pass outweighs HTTP and JSON by far
MODEL_COPIES = 3  # resident bytes of a model per byte of its artifact: weights, a frozen copy, activations
MAX_PROCESSES = 8
MAX_DECODE_THREADS = 16  # what decodes holds the GIL for a part of it: more threads only wait for it
LAST_PORT = 65535

# Ours: what the platform has no name for.
COMPUTE_THREADS = "SLIPWAY_COMPUTE_THREADS"
TORCH_THREADS = "SLIPWAY_TORCH_THREADS"
DECODE_THREADS = "SLIPWAY_DECODE_THREADS"
MAX_BATCH_SIZE = "SLIPWAY_MAX_BATCH_SIZE"
MAX_QUEUE_VARIABLE = "SLIPWAY_MAX_QUEUE"
MAX_WAITING_BYTES = "SLIPWAY_MAX_WAITING_BYTES"
MAX_REQUEST_BYTES_VARIABLE = "SLIPWAY_MAX_REQUEST_BYTES"
SESSIONS_PATH = "SAGEMAKER_SESSIONS_PATH"  # this and the next: names of AWS's model hosting container library
SESSIONS_EXPIRATION = "SAGEMAKER_SESSIONS_EXPIRATION"
SESSION_SECONDS = 1200
RECORD_PLACEHOLDERS = "SLIPWAY_RECORD_PLACEHOLDERS"  # a bad line gets a placeholder: batch then loses no file to it
MODEL_MEMORY_BYTES = "SLIPWAY_MODEL_MEMORY_BYTES"
MAX_PROCESS_MEMORY_BYTES = "SLIPWAY_MAX_PROCESS_MEMORY_BYTES"
PROCESSES_SHARE = 0.85  # of the memory is for the processes; one that takes more than its part of it is replaced
QUICK_HANDLERS = "SLIPWAY_QUICK_HANDLERS"  # "true": the user's functions never wait; see quick.py
WAITING_SHARE = 0.125  # of the memory is for bodies that have come and have no answer yet
PAGE = "SLIPWAY_PAGE"  # "true": a page to try the model with at /
METRICS_VARIABLE = "SLIPWAY_METRICS"  # "false": nothing is counted
MODEL_SERVER_TIMEOUT_SECONDS = "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS"


class PlanError(Exception):
    """An environment variable holds a value the server cannot run with."""


@dataclass(frozen=True)
class Machine:
    """What the container may use of its host."""

    cores: int
    """Whole cores: the least of CPU affinity and cgroup quota, at least 1."""
    memory_bytes: int
    gpus: int
    shm_writable: bool


@dataclass(frozen=True)
class ServerPlan:
    """Everything the server decided before it started; printed in one line."""

    port: int
    processes: int
    compute_threads: int
    """Per process: how many predictions run at once."""
    torch_threads: int
    """Per compute thread, inside one operator."""
    decode_threads: int
    """Per process, beside the device: how many requests are decoded at once; 0: compute threads do it themselves."""
    max_batch_size: int
    max_queue: int
    """Requests waiting in one process before the next gets 503."""
    max_waiting_bytes: int
    """Of bodies in one process's memory, before the next request whose body is not small gets 503."""
    max_request_bytes: int
    request_timeout_seconds: float
    worker_tmp_dir: str
    default_accept: str
    sessions_path: str
    session_seconds: float
    """How long a stateful session lives after its last request."""
    batch: bool
    multi_model: bool
    metrics: bool
    """Whether requests are counted and `/metrics` is there."""
    page: bool
    """Whether `/` is a page to try the model with."""
    max_process_memory_bytes: int | None
    """A process that grows past it is replaced; None: it may grow."""
    model_memory_bytes: int | None
    """What all models together may take; None: as much as the machine has."""
    keep_alive_seconds: int = KEEP_ALIVE_SECONDS
    graceful_seconds: int = GRACEFUL_SECONDS
    backlog: int = BACKLOG

    def line(self) -> str:
        """All figures as `name=value` in one line."""
        return " ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


def plan_server(machine: Machine, environ: Mapping[str, str], artifact_bytes: int) -> ServerPlan:
    """Decide how to serve.

    A heavy model gets one process whose compute threads share the weights, a light one (JSON and HTTP cost more than
    its forward pass) a process per core, a GPU machine one process per GPU, which decodes on the cores beside it.
    Processes times threads never exceed the cores. Every choice can be overridden by environment.

    Args:
        machine: what there is.
        environ: the container's environment; an empty variable is an unset one.
        artifact_bytes: size of the files in the model directory.

    Raises:
        PlanError: a variable holds no positive number, or no port.
    """
    multi_model = is_true(environ, contract.MULTI_MODEL)
    processes = _whole(environ, contract.MODEL_SERVER_WORKERS) or _processes(machine, artifact_bytes)
    if multi_model:
        processes = 1  # one registry: a model loaded through one connection is there for every other
    threads = _whole(environ, COMPUTE_THREADS) or (1 if machine.gpus else max(1, machine.cores // processes))
    torch_threads = _whole(environ, TORCH_THREADS) or max(1, machine.cores // (processes * threads))
    beside = max(1, machine.cores // processes - 1) if machine.gpus else 0
    batch = is_true(environ, contract.BATCH)
    timeout = _whole(environ, MODEL_SERVER_TIMEOUT_SECONDS) or _whole(environ, contract.MODEL_SERVER_TIMEOUT)
    if batch:
        timeout = None  # it was set for the model's endpoint; a transform job has InvocationsTimeoutInSeconds
    port = _whole(environ, contract.BIND_TO_PORT) or contract.DEFAULT_PORT
    if port > LAST_PORT:
        raise PlanError(f"{contract.BIND_TO_PORT}={port} is no port: 1 to {LAST_PORT} are")
    return ServerPlan(
        port=port,
        processes=processes,
        compute_threads=threads,
        torch_threads=torch_threads,
        decode_threads=_whole(environ, DECODE_THREADS) or min(beside, MAX_DECODE_THREADS),
        max_batch_size=_whole(environ, MAX_BATCH_SIZE) or 32,
        max_queue=_whole(environ, MAX_QUEUE_VARIABLE) or MAX_QUEUE,
        max_waiting_bytes=_whole(environ, MAX_WAITING_BYTES) or int(machine.memory_bytes * WAITING_SHARE / processes),
        max_request_bytes=_whole(environ, MAX_REQUEST_BYTES_VARIABLE) or MAX_REQUEST_BYTES,
        request_timeout_seconds=float(timeout or contract.BATCH_INVOCATION_TIMEOUT_SECONDS + PATIENCE_SECONDS),
        worker_tmp_dir="/dev/shm" if machine.shm_writable else "/tmp",
        default_accept=environ.get(contract.DEFAULT_INVOCATIONS_ACCEPT) or "application/json",
        sessions_path=environ.get(SESSIONS_PATH) or f"{tempfile.gettempdir()}/slipway-sessions-{port}",
        session_seconds=float(_whole(environ, SESSIONS_EXPIRATION) or SESSION_SECONDS),
        batch=batch,
        multi_model=multi_model,
        page=is_true(environ, PAGE),
        metrics=(environ.get(METRICS_VARIABLE) or "true").strip().lower() not in ("false", "0"),
        max_process_memory_bytes=_process_bound(machine, environ, processes, multi_model),
        model_memory_bytes=_whole(environ, MODEL_MEMORY_BYTES),
    )


def _process_bound(machine: Machine, environ: Mapping[str, str], processes: int, multi_model: bool) -> int | None:
    if multi_model:
        return None  # its models were loaded at the platform's word; a load that does not fit is refused instead
    share = int(machine.memory_bytes * PROCESSES_SHARE / processes)
    return _whole(environ, MAX_PROCESS_MEMORY_BYTES) or share


def _processes(machine: Machine, artifact_bytes: int) -> int:
    if machine.gpus:
        return machine.gpus
    if artifact_bytes >= HEAVY_ARTIFACT_BYTES:
        return 1
    fit = int(machine.memory_bytes * 0.8 / (PROCESS_BYTES + MODEL_COPIES * artifact_bytes))
    return max(1, min(machine.cores, fit, MAX_PROCESSES))


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name) or None
    if text is None:
        return None
    if not text.strip().isdecimal() or int(text) == 0:
        raise PlanError(f"{name}={text!r} must be a whole number above 0")
    return int(text)


def is_true(environ: Mapping[str, str], name: str) -> bool:
    """Whether a switch is on; local mode writes `True` where the service writes `true`."""
    return (environ.get(name) or "").strip().lower() in ("true", "1")


def read_machine() -> Machine:
    """Look at the cores, the memory, the GPUs and the file system this container has."""
    return Machine(
        cores=usable_cores(len(os.sched_getaffinity(0)), _cpu_max()),
        memory_bytes=usable_memory(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), limit_of_cgroup()),
        gpus=_visible_gpus(os.environ),
        shm_writable=os.access("/dev/shm", os.W_OK | os.X_OK),
    )


def usable_cores(affinity: int, cpu_max: str) -> int:
    """Cores by affinity and by a cgroup's `cpu.max` (`"150000 100000"` is one and a half core: 1)."""
    quota, _, period = cpu_max.partition(" ")
    if not quota.isdecimal():
        return max(1, affinity)
    return max(1, min(affinity, math.floor(int(quota) / int(period))))


def usable_memory(total: int, memory_max: str) -> int:
    """Bytes by the machine and by a cgroup's `memory.max`."""
    return min(total, int(memory_max)) if memory_max.isdecimal() else total


def _cpu_max() -> str:
    """The cgroup's CPU quota in version 2's form; hosts with Amazon Linux 2 still mount version 1."""
    version_1 = Path("/sys/fs/cgroup/cpu")
    quota, period = _read(version_1 / "cpu.cfs_quota_us"), _read(version_1 / "cpu.cfs_period_us")
    return _read(Path("/sys/fs/cgroup/cpu.max")) or f"{quota} {period}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _visible_gpus(environ: Mapping[str, str]) -> int:
    """GPUs by the device nodes the container was given, without asking CUDA, which must not start before the fork."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() and device.strip() != "-1"])
    return len([node for node in Path("/dev").glob("nvidia[0-9]*") if os.access(node, os.R_OK)])


def artifact_size(directory: Path) -> int:
    """Bytes of all files below `directory`; 0 where it does not exist."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())

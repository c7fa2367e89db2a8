"""Starting a container, and the way that needs no Docker: a plain process of our own code.

`ProcessRuntime` and `docker_containers.DockerRuntime` have the same three methods: `start`, `remove_leftovers` and
`reclaim`. What they start is a `Container`.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from container.contract import BASE_DIR, BASE_DIR_VARIABLE, BIND_TO_PORT, DEFAULT_PORT, OptMl
from launcher.local.logs import LineSplitter

LAST_LINES = 50
READ_BYTES = 65536
TRAIN, SERVE = "train", "serve"


class ContainerStartError(Exception):
    """The container could not be started: no such image, a taken port, an unusable command."""


@dataclass(frozen=True)
class Mount:
    """A directory of this machine that a container sees in its tree."""

    source: Path
    target: Path  # below the spec's opt_ml
    read_only: bool


@dataclass(frozen=True)
class ContainerSpec:
    """What to start: the image, its argument, and the host's tree."""

    name: str  # unique on this machine
    image: str
    argument: str  # `train`, `serve` or none; replaced by `arguments`, dropped with an `entrypoint`
    opt_ml: OptMl
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    network: str = ""  # containers of one network find each other by `alias`
    alias: str = ""
    port: int = 0  # where a server must listen; 0: none
    isolated: bool = False
    read_only: tuple[Path, ...] = ()  # directories below opt_ml that the container must not write
    mounts: tuple[Mount, ...] = ()
    memory_mb: int = 0  # a limit; 0: none. Processes have none, as torch reserves far more than it uses

    @property
    def command(self) -> tuple[str, ...]:
        """What stands after the image ("How Amazon SageMaker AI Runs Your Training Image", four cases)."""
        if self.entrypoint:
            return self.arguments
        return self.arguments or ((self.argument,) if self.argument else ())


class Container(Protocol):
    """A started container."""

    spec: ContainerSpec
    last_lines: deque[str]

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 plus the signal's number where one ended it."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port at which its server is reached from here."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end and its last log line; the exit code, or None if it still runs."""

    def stop(self, grace_seconds: float) -> int:
        """SIGTERM to PID 1, SIGKILL to all after the grace; the exit code."""


class Runtime(Protocol):
    """A way to start containers."""

    name: str
    listen_hosts: tuple[str, ...]  # addresses at which this server must listen so that containers reach it

    def start(self, spec: ContainerSpec, write_line: Callable[[str], None]) -> Container:
        """Start it; every line that it prints goes to `write_line`.

        Raises:
            ContainerStartError: it cannot be started.
        """

    def seen_path(self, opt_ml: OptMl, path: Path) -> Path:
        """How a container whose tree is `opt_ml` calls a path below it."""

    def remove_network(self, network: str) -> None:
        """Remove what `start` created for a network."""

    def remove_leftovers(self) -> None:
        """End everything that an earlier server of this home left behind."""

    def reclaim(self, directory: Path, image: str) -> None:
        """Make the files below a directory removable by this user."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class ProcessRuntime:
    """Runs `python -m container` as a process per host; whatever the image's name is, it is our own code."""

    name = "process"
    listen_hosts: tuple[str, ...] = ("127.0.0.1",)

    def __init__(self, jobs_directory: Path, home: Path, python_path: str | None) -> None:
        self._jobs_directory = jobs_directory
        self._home = home  # $HOME of all, as /root is in an image: font and kernel caches are made once
        self._python_path = python_path

    def start(self, spec: ContainerSpec, write_line: Callable[[str], None]) -> "ProcessContainer":
        self._home.mkdir(parents=True, exist_ok=True)
        for mount in spec.mounts:
            mount.target.rmdir()  # empty: what is mounted hides it
            mount.target.symlink_to(mount.source, target_is_directory=True)
        try:
            process = subprocess.Popen(
                process_argv(spec),
                env=process_environment(spec, self._home, self._python_path),
                cwd=spec.opt_ml.base.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise ContainerStartError(f"{process_argv(spec)[0]}: {error.strerror}") from error
        return ProcessContainer(spec, process, write_line)

    def seen_path(self, opt_ml: OptMl, path: Path) -> Path:
        """A process has no file system of its own."""
        return path

    def remove_network(self, network: str) -> None:
        """Processes share the machine's network: nothing to remove."""

    def remove_leftovers(self) -> None:
        kill_processes_below(self._jobs_directory)

    def reclaim(self, directory: Path, image: str) -> None:
        """The process ran as this user: its files are ours."""


def process_argv(spec: ContainerSpec) -> list[str]:
    """The command line of a host; `/opt/ml` in an overridden one means the host's own tree."""
    base = str(spec.opt_ml.base)
    command = [part.replace(str(BASE_DIR), base) for part in spec.command]
    if spec.entrypoint:
        return [part.replace(str(BASE_DIR), base) for part in spec.entrypoint] + command
    return [sys.executable, "-m", "container", *command]


def process_environment(spec: ContainerSpec, home: Path, python_path: str | None) -> dict[str, str]:
    """The environment of a host, from scratch: nothing of the caller's shell gets in."""
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        **spec.environment,
        BASE_DIR_VARIABLE: str(spec.opt_ml.base),
    }
    if python_path:
        environment["PYTHONPATH"] = python_path
    if spec.port:
        environment[BIND_TO_PORT] = str(spec.port)
    return environment


class ProcessContainer:
    """One host as a process group; ends when its first process ends, as a container does."""

    def __init__(
        self, spec: ContainerSpec, process: subprocess.Popen[bytes], write_line: Callable[[str], None]
    ) -> None:
        self.spec = spec
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._process = process
        self._write_line = write_line
        self._ended = threading.Event()
        reader = threading.Thread(target=self._read, name=f"log {spec.name}", daemon=True)
        reader.start()
        threading.Thread(target=self._reap, args=(reader,), name=f"wait {spec.name}", daemon=True).start()

    @property
    def exit_code(self) -> int | None:
        if not self._ended.is_set():
            return None
        code = self._process.returncode
        return 128 - code if code < 0 else code

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.spec.port or DEFAULT_PORT

    def wait(self, timeout: float | None = None) -> int | None:
        self._ended.wait(timeout)
        return self.exit_code

    def stop(self, grace_seconds: float) -> int:
        self._process.send_signal(signal.SIGTERM)  # a no-op once it is reaped
        if not self._ended.wait(grace_seconds):
            self._kill_all()
            self._ended.wait()
        return self.exit_code or 0

    def _read(self) -> None:
        def keep(line: str) -> None:
            self.last_lines.append(line)
            self._write_line(line)

        splitter = LineSplitter(keep)
        assert self._process.stdout is not None
        output = self._process.stdout.fileno()
        while data := os.read(output, READ_BYTES):
            splitter.feed(data)
        splitter.close()

    def _reap(self, reader: threading.Thread) -> None:
        self._process.wait()
        self._kill_all()  # torchrun's workers lead sessions of their own
        reader.join()
        self._ended.set()

    def _kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        kill_processes_below(self.spec.opt_ml.base)


def kill_processes_below(directory: Path) -> None:
    """SIGKILL every process whose environment has its `/opt/ml` at or below `directory`."""
    for pid in processes_below(directory):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def processes_below(directory: Path) -> Iterator[int]:
    """Ids of the processes whose `SAGEMAKER_BASE_DIR` is at or below `directory`; none where there is no /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for item in (entry / "environ").read_bytes().split(b"\0"):
                name, _, value = item.partition(b"=")
                if name == BASE_DIR_VARIABLE.encode() and Path(os.fsdecode(value)).is_relative_to(directory):
                    yield int(entry.name)

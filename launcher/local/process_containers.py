"""Starting a container without Docker: a plain process of our own code."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from container.contract import BASE_DIR, BASE_DIR_VARIABLE, BIND_TO_PORT, DEFAULT_PORT, OptMl
from launcher.local.containers import LAST_LINES, ContainerSpec, ContainerStartError, Door
from launcher.local.logs import LineSplitter

READ_BYTES = 65536
KILL_SECONDS = 10.0  # what is not dead by then, waits for a device
KILL_POLL_SECONDS = 0.01


class ProcessRuntime:
    """Runs `python -m container` as a process per host; whatever the image's name is, it is our own code."""

    name = "process"
    listen_hosts: tuple[str, ...] = ("127.0.0.1",)

    def __init__(self, jobs_directory: Path, home: Path, python_path: str | None) -> None:
        self._jobs_directory = jobs_directory
        self._home = home  # $HOME of all, as /root is in an image: font and kernel caches are made once
        self._python_path = python_path
        self._door = Door()

    def start(self, spec: ContainerSpec, write_line: Callable[[str], None]) -> "ProcessContainer":
        with self._door.passing():
            return self._start(spec, write_line)

    def _start(self, spec: ContainerSpec, write_line: Callable[[str], None]) -> "ProcessContainer":
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

    def close(self) -> None:
        self._door.close()
        self.remove_leftovers()

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
        self.image = spec.image
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
    """SIGKILL every process whose environment has its `/opt/ml` at or below `directory`, until none is left.

    One look is not enough: a process may start another one while the others are looked at.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while (found := list(processes_below(directory))) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_POLL_SECONDS)


def processes_below(directory: Path) -> Iterator[int]:
    """Ids of the processes whose `SAGEMAKER_BASE_DIR` is at or below `directory`; none where there is no /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for item in (entry / "environ").read_bytes().split(b"\0"):
                name, _, value = item.partition(b"=")
                if name == BASE_DIR_VARIABLE.encode() and Path(os.fsdecode(value)).is_relative_to(directory):
                    yield int(entry.name)

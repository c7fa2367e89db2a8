"""What a container is here, and what starts one; `process_containers` and `docker_containers` have the two ways."""

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from container.contract import OptMl

LAST_LINES = 50
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
    network: str = ""  # containers of one network find each other by `alias`; "": it has nobody to find
    alias: str = ""
    port: int = 0  # where a server must listen; 0: none
    isolated: bool = False
    read_only: tuple[Path, ...] = ()  # directories below opt_ml that the container must not write
    mounts: tuple[Mount, ...] = ()
    memory_mb: int = 0  # of a serverless endpoint's container; processes are not held to it, as torch reserves too much

    @property
    def command(self) -> tuple[str, ...]:
        """What stands after the image ("How Amazon SageMaker AI Runs Your Training Image", four cases)."""
        if self.entrypoint:
            return self.arguments
        return self.arguments or ((self.argument,) if self.argument else ())


class Container(Protocol):
    """A started container."""

    spec: ContainerSpec
    image: str
    """What runs: by its digest, where there is an engine that knows it."""
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
            ContainerStartError: it cannot be started, or the runtime is closed.
        """

    def close(self) -> None:
        """Start nothing any more, and end whatever runs: at the server's end, when nobody is left to do it."""

    def seen_path(self, opt_ml: OptMl, path: Path) -> Path:
        """How a container whose tree is `opt_ml` calls a path below it."""

    def remove_network(self, network: str) -> None:
        """Remove what `start` created for a network."""

    def remove_leftovers(self) -> None:
        """End everything that an earlier server of this home left behind."""

    def reclaim(self, directory: Path, image: str) -> None:
        """Make the files below a directory removable by this user."""


class Door:
    """Every start goes through it, so that none can slip in behind the end of all containers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._passing = 0
        self._closed = False

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """While a container is started.

        Raises:
            ContainerStartError: the door is closed.
        """
        with self._changed:
            if self._closed:
                raise ContainerStartError("the local SageMaker is ending")
            self._passing += 1
        try:
            yield
        finally:
            with self._changed:
                self._passing -= 1
                self._changed.notify_all()

    def close(self) -> None:
        """Let nothing more in, and wait for what is inside."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._passing)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now, and that the kernel gives to nobody else for a minute.

    A connection through it that was closed here is in TIME_WAIT: `bind` to port 0 avoids its port, and a server that
    sets SO_REUSEADDR, as all do, may have it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as client:
        listener.accept()[0].close()
        client.recv(1)
        return int(listener.getsockname()[1])

"""The one interface between a check and what it tests: start a container, look into it, signal it, remove it.

`docker_target.DockerTarget` starts an image; `process_target.ProcessTarget` starts a command that moves `/opt/ml` by
`SAGEMAKER_BASE_DIR` and listens where `SAGEMAKER_BIND_TO_PORT` says, as our own code does.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from container.contract import DEFAULT_PORT, OptMl

POLL_SECONDS = 0.1
EXECUTABLE_NOT_FOUND = (126, 127)  # what Docker and shells report for a command that is not there or cannot run


class CheckFailed(Exception):
    """The contract's statement does not hold; says what was seen and what SageMaker would have done with it."""


class CannotStart(CheckFailed):
    """The container does not even start: there is nothing to execute, or the engine refuses."""


class NotJudged(Exception):
    """This machine, or what the user gave, cannot tell; says why. Never a pass."""


@dataclass(frozen=True)
class Launch:
    """A container to start."""

    arguments: tuple[str, ...]
    """What stands after the image: `train`, `serve`, a command, or nothing."""
    environment: Mapping[str, str] = field(default_factory=dict)
    opt_ml: OptMl | None = None
    """Mounted at `/opt/ml`, writable."""
    mounts: Mapping[Path, Path] = field(default_factory=dict)
    """Path below `/opt/ml` -> directory of this machine, mounted read-only."""
    ports: tuple[int, ...] = (DEFAULT_PORT,)
    """To be reached from here; the first is where this container's server listens."""
    network: bool = True
    """False: no network at all, as under network isolation."""
    beside: "Running | None" = None
    """A container whose network namespace this one joins."""
    hardened: bool = False
    """As on a serverless endpoint: another user, read-only root, only /tmp writable, no /dev/shm."""


@dataclass(frozen=True)
class Process:
    """One process of a container."""

    pid: int
    """On this machine, or in the engine's."""
    parent: int
    resident_kib: int
    state: str
    """`ps`'s letter and modifiers; `Z` is a zombie."""
    command: str


@dataclass(frozen=True)
class ImageFacts:
    """What `docker image inspect` and a listing of the files say."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    user: str
    labels: Mapping[str, str]
    size_bytes: int
    platform: str
    """Such as `linux/amd64`."""
    media_type: str
    """Of the manifest, where the engine knows; "" in a classic image store, which holds single-platform images only."""
    files: tuple[str, ...]
    """Paths of interest: everything below `/opt/ml`, libcuda libraries, NVIDIA's kernel modules and driver packages."""


class Running(Protocol):
    """A started container."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 plus the signal's number where one ended it."""

    def address(self, port: int) -> tuple[str, int]:
        """Where a port of the container is reached from here, without a proxy in between where that is possible."""

    def logs(self) -> str:
        """Everything it printed so far."""

    def signal(self, number: int) -> None:
        """Send a signal to its PID 1; nothing happens when it has ended."""

    def kill(self, process: Process) -> None:
        """SIGKILL one of its processes."""

    def execute(self, *command: str) -> tuple[int, str]:
        """Run a command in it; exit code and output.

        Raises:
            NotJudged: that cannot be done here.
        """

    def processes(self) -> list[Process]:
        """Its process tree, PID 1 first; empty when it has ended."""

    def listening(self) -> set[tuple[str, int]]:
        """Address and port of every listening TCP socket, `0.0.0.0` for all of IPv4 and `::` for all.

        Raises:
            NotJudged: that cannot be seen here.
        """

    def first_process_file(self, name: str) -> str:
        """Content of `/proc/1/<name>`, such as `status` or `environ`.

        Raises:
            NotJudged: that cannot be read here.
        """

    def remove(self) -> None:
        """End it and whatever it started."""


class Target(Protocol):
    """What is tested."""

    name: str

    is_image: bool
    """False: a process; then what needs namespaces, users or an image's facts cannot be judged."""

    def start(self, launch: Launch) -> Running:
        """Start it.

        Raises:
            CannotStart: and what SageMaker would make of it.
        """

    def image(self) -> ImageFacts:
        """The image's facts.

        Raises:
            NotJudged: there is no image.
        """

    def reclaim(self, directory: Path) -> None:
        """Make what containers wrote below a directory removable by this user."""


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Whether the condition comes true in time; it is asked at least once."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def wait_for_end(running: Running, seconds: float) -> int | None:
    """The exit code, or None if it still runs after so long."""
    wait_until(lambda: running.exit_code is not None, seconds)
    return running.exit_code


def parse_listening(tables: str) -> dict[str, tuple[str, int]]:
    """Listening sockets of `/proc/net/tcp` and `tcp6`, by inode: the address as a person writes it, and the port."""
    found = {}
    for line in tables.splitlines():
        columns = line.split()
        if len(columns) > 9 and columns[3] == "0A":
            address, _, port = columns[1].rpartition(":")
            found[columns[9]] = (_address(address), int(port, 16))
    return found


def _address(hexadecimal: str) -> str:
    """`0100007F` is 127.0.0.1: the kernel prints words in the machine's byte order."""
    if set(hexadecimal) == {"0"}:
        return "0.0.0.0" if len(hexadecimal) == 8 else "::"
    if len(hexadecimal) == 8:
        return ".".join(str(byte) for byte in reversed(bytes.fromhex(hexadecimal)))
    return "::1" if hexadecimal.endswith("01000000") else hexadecimal.lower()

"""A command as target: no Docker needed. It must honour `SAGEMAKER_BASE_DIR` and `SAGEMAKER_BIND_TO_PORT`."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from container.contract import BASE_DIR_VARIABLE, BIND_TO_PORT
from launcher.check.target import (
    CannotStart,
    ImageFacts,
    Launch,
    NotJudged,
    Process,
    parse_listening,
)

MARK = "SLIPWAY_CHECK"  # in the environment of everything a target starts: finds what has left the process group


class ProcessTarget:
    """Our own code, or any command, as a plain process of this machine."""

    is_image = False

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str] | None = None) -> None:
        self.name = " ".join([Path(command[0]).name, *command[1:]])
        self._command = command
        self._environment = environment or {}

    def start(self, launch: Launch) -> "ProcessRunning":
        home = Path(tempfile.mkdtemp(prefix="slipway-check-"))
        base = launch.opt_ml.base if launch.opt_ml else home / "ml"
        base.mkdir(parents=True, exist_ok=True)
        for below, source in launch.mounts.items():
            (base / below).parent.mkdir(parents=True, exist_ok=True)
            if (base / below).is_dir():
                (base / below).rmdir()  # a mount hides it
            (base / below).symlink_to(source, target_is_directory=True)
        mark = uuid.uuid4().hex
        environment = {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"]),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            **self._environment,
            BIND_TO_PORT: str(launch.ports[0]),
            **launch.environment,
            BASE_DIR_VARIABLE: str(base),
            MARK: mark,
        }
        return ProcessRunning([*self._command, *launch.arguments], environment, home, mark)

    def image(self) -> ImageFacts:
        raise NotJudged("a process has no image: name one, `launcher check IMAGE`")

    def reclaim(self, directory: Path) -> None:
        """The processes ran as this user."""


class ProcessRunning:
    """One process and whatever it started."""

    def __init__(self, argv: list[str], environment: dict[str, str], home: Path, mark: str) -> None:
        self._log = home / "log"
        self._mark = mark
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    argv,
                    env=environment,
                    cwd=home,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                shutil.rmtree(home)
                raise CannotStart(f"{argv[0]} cannot be started: {error.strerror}") from error

    @property
    def exit_code(self) -> int | None:
        code = self._process.poll()
        if code is None:
            return None
        return 128 - code if code < 0 else code

    def address(self, port: int) -> tuple[str, int]:
        return "127.0.0.1", port

    def logs(self) -> str:
        return self._log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)  # a no-op once it has ended

    def kill(self, process: Process) -> None:
        os.kill(process.pid, signal.SIGKILL)

    def execute(self, *command: str) -> tuple[int, str]:
        raise NotJudged("a process has no container to run a command in")

    def processes(self) -> list[Process]:
        pids = [self._process.pid, *(pid for pid in marked(self._mark) if pid != self._process.pid)]
        argv = ["ps", "-o", "pid=,ppid=,rss=,stat=,args=", "-p", ",".join(map(str, pids))]
        lines = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.splitlines()
        columns = [line.split(None, 4) for line in lines]
        found = {
            int(pid): Process(int(pid), int(parent), int(rss), state, *rest)
            for pid, parent, rss, state, *rest in columns
            if rest
        }
        return [found[pid] for pid in pids if pid in found]

    def listening(self) -> set[tuple[str, int]]:
        sockets = parse_listening(Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text())
        own = {inode for process in self.processes() for inode in _socket_inodes(process.pid)}
        return {address for inode, address in sockets.items() if inode in own}

    def first_process_file(self, name: str) -> str:
        try:
            return Path("/proc", str(self._process.pid), name).read_text(errors="replace")
        except OSError as error:
            raise NotJudged(f"/proc/{self._process.pid}/{name}: {error.strerror}") from error

    def remove(self) -> None:
        for pid in {self._process.pid, *marked(self._mark)} if self.exit_code is None else set(marked(self._mark)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        shutil.rmtree(self._log.parent, ignore_errors=True)


def marked(mark: str) -> Iterator[int]:
    """Ids of the processes whose environment carries a mark: children inherit it."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def _socket_inodes(pid: int) -> Iterator[str]:
    for link in Path("/proc", str(pid), "fd").glob("*"):
        with contextlib.suppress(OSError):
            name = os.readlink(link)
            if name.startswith("socket:["):
                yield name[8:-1]

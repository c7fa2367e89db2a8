"""An image as target, through the `docker` client: every option that a check needs is one of its arguments."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from container.contract import BASE_DIR
from launcher.check.http import is_reachable
from launcher.check.target import CannotStart, ImageFacts, Launch, NotJudged, Process, Running, parse_listening

LABEL = "slipway.check"
HARDENED = ("--user=10001:10001", "--read-only", "--tmpfs=/tmp", "--ipc=none", "--cap-drop=ALL")
# What the checks of an image look for in its file system; evaluated by the image's own find.
PATTERNS = (
    f"-path '{BASE_DIR}/*' ! -type d",
    "-name 'libcuda.so*'",
    "-name 'nvidia*.ko*'",
    "-path '/var/lib/dpkg/info/nvidia-*.list'",
)
FIND = rf"find / -xdev \( {' -o '.join(PATTERNS)} \) -print"


class DockerError(Exception):
    """The engine refused a command, or the client cannot run."""


def docker(*arguments: str, seconds: float = 120) -> str:
    """Run the client; standard output and standard error together, for those are the container's two log streams.

    Raises:
        DockerError: it failed; the message is the engine's.
    """
    try:
        done = subprocess.run(
            ["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DockerError(f"docker {arguments[0]}: {error}") from error
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise DockerError(output.strip() or f"docker {arguments[0]} ended with {done.returncode}")
    return output


def create_argv(image: str, launch: Launch, label: str) -> list[str]:
    """Arguments of `docker create` for a launch."""
    argv = ["create", "--label", label]
    argv += [f"--env={name}={value}" for name, value in launch.environment.items()]
    if launch.beside is not None:
        argv += [f"--network=container:{_id_of(launch.beside)}"]
    elif not launch.network:
        argv += ["--network=none"]
    else:
        argv += [f"--publish=127.0.0.1::{port}" for port in launch.ports]
    if launch.opt_ml is not None:
        argv += [f"--volume={launch.opt_ml.base}:{BASE_DIR}"]
    argv += [f"--volume={source}:{BASE_DIR / below}:ro" for below, source in launch.mounts.items()]
    argv += HARDENED if launch.hardened else ()
    return [*argv, image, *launch.arguments]


class DockerTarget:
    """An image of the local engine."""

    is_image = True

    def __init__(self, image: str) -> None:
        self.name = image
        self.label = f"{LABEL}={uuid.uuid4().hex}"

    def start(self, launch: Launch) -> "DockerRunning":
        try:
            container = docker(*create_argv(self.name, launch, self.label)).strip().splitlines()[-1]
        except DockerError as error:
            raise _cannot_start(launch, error) from error
        running = DockerRunning(container, launch.beside)
        try:
            docker("start", container)
        except DockerError as error:
            running.remove()
            raise _cannot_start(launch, error) from error
        return running

    def image(self) -> ImageFacts:
        return self._facts

    @cached_property
    def _facts(self) -> ImageFacts:
        described = json.loads(docker("image", "inspect", self.name))[0]
        config = described["Config"]
        return ImageFacts(
            entrypoint=tuple(config.get("Entrypoint") or ()),
            command=tuple(config.get("Cmd") or ()),
            user=config.get("User") or "",
            labels=config.get("Labels") or {},
            size_bytes=described["Size"],
            platform=f"{described['Os']}/{described['Architecture']}",
            media_type=(described.get("Descriptor") or {}).get("mediaType", ""),
            files=self._files(),
        )

    def _files(self) -> tuple[str, ...]:
        """With the image's own `find`; where it has none, from an export of its file system, which takes longer."""
        argv = ("run", "--rm", "--label", self.label, "--network=none", "--user=0", "--entrypoint=/bin/sh", self.name)
        try:
            return tuple(docker(*argv, "-c", FIND).split("\n")[:-1])
        except DockerError:
            return self.exported_files()

    def exported_files(self) -> tuple[str, ...]:
        """The same, without any program of the image."""
        container = docker("create", "--label", self.label, self.name, "true").strip()
        try:
            listing = subprocess.run(
                f"docker export {container} | tar -t", shell=True, capture_output=True, check=True, timeout=600
            )
        finally:
            docker("rm", container)
        paths = ["/" + line for line in listing.stdout.decode("utf-8", "replace").splitlines()]
        return tuple(path for path in paths if is_of_interest(path))

    def reclaim(self, directory: Path) -> None:
        """Hand root's files back to this user, with the image's own `chown`."""
        if os.getuid() == 0:
            return
        owner = f"{os.getuid()}:{os.getgid()}"
        argv = ("run", "--rm", "--label", self.label, "--network=none", "--user=0", f"--volume={directory}:/reclaim")
        try:
            docker(*argv, "--entrypoint=chown", self.name, "-R", owner, "/reclaim")
        except DockerError as error:
            raise NotJudged(f"{directory} holds files of root that this image cannot hand back: {error}") from error

    def remove_all(self) -> None:
        """Remove every container that this target started and that is still there."""
        if left := docker("ps", "--all", "--quiet", "--filter", f"label={self.label}").split():
            docker("rm", "--force", "--volumes", *left)


def is_of_interest(path: str) -> bool:
    """Whether a check looks at this path; what `FIND` selects."""
    name = path.rpartition("/")[2]
    return (
        (path.startswith(f"{BASE_DIR}/") and not path.endswith("/"))
        or name.startswith("libcuda.so")
        or (name.startswith("nvidia") and ".ko" in name)
        or (path.startswith("/var/lib/dpkg/info/nvidia-") and path.endswith(".list"))
    )


class DockerRunning:
    """One container of the engine."""

    def __init__(self, container: str, beside: Running | None = None) -> None:
        self.container = container
        self._network_of = beside
        self._addresses: dict[int, tuple[str, int]] = {}

    @property
    def exit_code(self) -> int | None:
        state = self._inspect()["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def address(self, port: int) -> tuple[str, int]:
        """The container's own on Linux: Docker's proxy accepts connections that the server would not."""
        if self._network_of is not None:
            return self._network_of.address(port)
        if port not in self._addresses:
            self._addresses[port] = self._find_address(port)
        return self._addresses[port]

    def _find_address(self, port: int) -> tuple[str, int]:
        own = self._inspect()["NetworkSettings"].get("IPAddress", "")
        if own and sys.platform == "linux" and is_reachable(own, port):
            return own, port
        published = docker("port", self.container, str(port)).splitlines()[0]
        return "127.0.0.1", int(published.rpartition(":")[2])

    def logs(self) -> str:
        return docker("logs", self.container)

    def signal(self, number: int) -> None:
        if self.exit_code is None:
            docker("kill", f"--signal={signal.Signals(number).name}", self.container)

    def kill(self, process: Process) -> None:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except PermissionError:
            inside = _proc(process.pid, "status").partition("NSpid:")[2].splitlines()[0].split()[-1]
            self.execute("/bin/sh", "-c", f"kill -9 {inside}")

    def execute(self, *command: str) -> tuple[int, str]:
        done = subprocess.run(
            ["docker", "exec", self.container, *command], capture_output=True, text=True, check=False, timeout=60
        )
        output = done.stdout + done.stderr
        if done.returncode in (126, 127):
            raise NotJudged(f"{command[0]} cannot be run in the container: {_last_line(output)}")
        return done.returncode, output

    def processes(self) -> list[Process]:
        try:
            lines = docker("top", self.container, "-eo", "pid,ppid,rss,stat,args").splitlines()[1:]
        except DockerError:
            return []  # it has ended
        columns = [line.split(None, 4) for line in lines]
        return [Process(int(pid), int(parent), int(rss), state, args) for pid, parent, rss, state, args in columns]

    def listening(self) -> set[tuple[str, int]]:
        pid = self._inspect()["State"]["Pid"]
        try:
            tables = _proc(pid, "net/tcp") + _proc(pid, "net/tcp6")
        except OSError:
            tables = self.execute("cat", "/proc/net/tcp", "/proc/net/tcp6")[1]
        return set(parse_listening(tables).values())

    def first_process_file(self, name: str) -> str:
        try:
            return _proc(self._inspect()["State"]["Pid"], name)
        except OSError:
            return self.execute("cat", f"/proc/1/{name}")[1]

    def remove(self) -> None:
        with contextlib.suppress(DockerError):  # removed before
            docker("rm", "--force", "--volumes", self.container)

    def _inspect(self) -> dict:
        return json.loads(docker("inspect", self.container))[0]


def _cannot_start(launch: Launch, error: DockerError) -> CannotStart:
    return CannotStart(
        f"the container cannot be started with {list(launch.arguments)}: {_last_line(str(error))}; SageMaker fails the "
        "job or endpoint with 'CannotStartContainerError'"
    )


def _id_of(running: Running) -> str:
    assert isinstance(running, DockerRunning)
    return running.container


def _proc(pid: int, name: str) -> str:
    return Path("/proc", str(pid), name).read_text(errors="replace")


def _last_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[-1].strip() if lines else "no message"

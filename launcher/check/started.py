"""What a check has started: a server, or a training job."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from container import contract
from container.contract import OptMl
from launcher.check.http import Address, Answer, NoAnswer, Request, ping, send
from launcher.check.target import CheckFailed, NotJudged, Running, wait_until

LOG_TAIL_CHARACTERS = 300


@dataclass(frozen=True)
class Server:
    """A running server."""

    running: Running
    port: int
    opt_ml: OptMl

    @property
    def address(self) -> Address:
        return self.running.address(self.port)

    def ping(self, method: str = "GET") -> Answer:
        return ping(self.address, method)

    def post(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        return send(self.address, "POST", contract.INVOCATIONS_PATH, body, headers)

    def invoke(self, request: Request, headers: Mapping[str, str] | None = None) -> Answer:
        return self.post(request.body, request.headers | dict(headers or {}))

    @property
    def log_tail(self) -> str:
        return tail(self.running.logs())


@dataclass
class TrainingLayout:
    """A training job before its start; an arrangement changes it."""

    opt_ml: OptMl
    environment: dict[str, str]
    mounts: dict[Path, Path]
    """Channels."""
    network: bool = True


Arrangement = Callable[[TrainingLayout], None]


@dataclass(frozen=True)
class TrainingRun:
    """A training job that has ended, or was ended because it took too long."""

    opt_ml: OptMl
    exit_code: int | None
    """None where it did not end in time."""
    logs: str

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0

    @property
    def failure(self) -> str | None:
        """Text of the failure file; None where there is none."""
        if not self.opt_ml.failure.is_file():
            return None
        return self.opt_ml.failure.read_text(errors="replace")

    def __str__(self) -> str:
        ended = "did not end" if self.exit_code is None else f"ended with exit code {self.exit_code}"
        return f"training {ended}; its last words: {tail(self.failure or self.logs)!r}"


def wait_until_healthy(server: Server, seconds: float) -> Server:
    """Wait for the first 200 on `/ping`.

    Raises:
        CheckFailed: it ended, or never became healthy.
    """
    verdict = "the endpoint fails with 'did not pass the ping health check'"
    settled = wait_until(lambda: server.running.exit_code is not None or is_healthy(server), seconds)
    if server.running.exit_code is not None:
        raise CheckFailed(f"serve ended with exit code {server.running.exit_code}: {server.log_tail!r}; {verdict}")
    if not settled:
        raise CheckFailed(
            f"/ping was never 200 in {seconds:.0f} s ({_listens(server)}): {server.log_tail!r}; {verdict}"
        )
    return server


def is_healthy(server: Server) -> bool:
    """Whether `/ping` is 200 now."""
    try:
        return server.ping().status == 200
    except NoAnswer:
        return False


def handles_sigterm(running: Running) -> bool:
    """Whether the first process has a handler for SIGTERM: the kernel drops it for a PID 1 that has none."""
    status = running.first_process_file("status")
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> 14 & 1)


def tail(text: str) -> str:
    """The last lines of a log that fit into one line of a table, or the start of the last one."""
    kept: list[str] = []
    for line in reversed([line.strip() for line in text.splitlines() if line.strip()]):
        if kept and sum(map(len, kept)) + len(line) > LOG_TAIL_CHARACTERS:
            break
        kept.insert(0, line[:LOG_TAIL_CHARACTERS])
    return " ".join(kept)


def write_json(path: Path, value: object) -> None:
    """Replace a file of the configuration."""
    path.write_text(json.dumps(value))


def _listens(server: Server) -> str:
    try:
        addresses = server.running.listening()
    except NotJudged:
        return "what it listens on cannot be seen"
    shown = ", ".join(f"{address}:{port}" for address, port in sorted(addresses))
    return f"it listens on {shown or 'nothing'}"

"""Where a host's launcher, torchrun and the ranks meet: a directory of small files, gone when the job ends."""

import ctypes
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from container import contract

RANK_MODULE = "container.train.rank"
PLANNED = "planned"
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True)
class Runtime:
    """The directory and its files. Writers rename into place, so that a reader never sees half a file."""

    directory: Path

    @classmethod
    def from_env(cls) -> "Runtime | None":
        """The one this process was started in; None under a bare torchrun."""
        directory = os.environ.get(contract.RUNTIME_DIR_VARIABLE)
        return cls(Path(directory)) if directory else None

    @property
    def stop_request(self) -> Path:
        """Exists once the platform has asked for a stop: tells ranks the launcher's SIGTERM from torchrun's."""
        return self.directory / "stop"

    @property
    def stop_requested(self) -> bool:
        return self.stop_request.exists()

    @property
    def stop_is_planned(self) -> bool:
        """Whether this host stops by itself, because its time limit is near."""
        return self.stop_requested and self.stop_request.read_text() == PLANNED

    @property
    def planned_elsewhere(self) -> Path:
        """Exists once another host has begun a planned stop: this one's limit, counted from its own start, is later."""
        return self.directory / "planned-elsewhere"

    def request_stop(self, planned: bool) -> None:
        """Called by the launcher before it passes the stop on."""
        temporary = self.directory / ".stop"
        temporary.write_text(PLANNED if planned else "")
        temporary.replace(self.stop_request)

    def stack_file(self, rank: int) -> Path:
        """Where a rank's Python stacks go when a signal ends it."""
        return self.directory / f"stack-{rank}.txt"

    def stacks(self) -> dict[int, str]:
        """Rank -> its stacks, of those that a signal ended."""
        texts = {path: path.read_text(errors="replace") for path in self.directory.glob("stack-*.txt")}
        return {int(path.stem.partition("-")[2]): text for path, text in texts.items() if text}

    def write(self, name: str, value: Any) -> None:
        temporary = self.directory / f".{name}.{os.getpid()}"
        temporary.write_text(json.dumps(value))
        temporary.replace(self.directory / name)

    def read(self, name: str, default: Any = None) -> Any:
        path = self.directory / name
        return json.loads(path.read_text()) if path.is_file() else default

    def register_rank(self, local_rank: int) -> None:
        """Called by a rank about itself, before anything else."""
        self.write(f"rank-{local_rank}.json", os.getpid())

    def mark_done(self, local_rank: int) -> None:
        """Called by a rank whose program has ended well."""
        self.write(f"done-{local_rank}.json", os.getpid())

    @property
    def done_ranks(self) -> int:
        return sum(1 for _ in self.directory.glob("done-*.json"))

    def live_ranks(self) -> list[int]:
        """Pids of registered ranks that still run."""
        pids = [json.loads(path.read_text()) for path in self.directory.glob("rank-*.json")]
        return [pid for pid in pids if _is_rank(pid)]

    def signal_ranks(self, number: int) -> int:
        """Send a signal to each rank's own process, not to its DataLoader workers; returns how many got it."""
        sent = 0
        for pid in self.live_ranks():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue  # it has ended since
            sent += 1
        return sent

    def kill_ranks(self) -> None:
        """End every rank that is left, with its workers: each rank leads a session of its own."""
        for pid in self.live_ranks():
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def end_with_parent() -> None:
    """Have the kernel end this process when its parent dies: outside of a container nothing else would."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_rank(pid: int) -> bool:
    """Guards against a pid that the kernel has given to somebody else, and against zombies (empty cmdline)."""
    try:
        return RANK_MODULE.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False

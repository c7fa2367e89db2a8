"""How far each rank is: a few bytes per rank in memory that its host's processes share."""

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from container.train.runtime import Runtime

_LAYOUT = struct.Struct("=qd?")


@dataclass(frozen=True)
class Position:
    """Where a rank's training loop stands."""

    step: int
    """Steps ended."""
    ended_at: float
    """When the last one did: time.monotonic(), which all processes of a machine share."""
    stalled: bool = False
    """Whether the rank itself has found that it takes too long."""


class ProgressBoard:
    """What one rank writes; no system call per step."""

    def __init__(self, runtime: Runtime, local_rank: int) -> None:
        path = _path(runtime, local_rank)
        path.write_bytes(_LAYOUT.pack(0, time.monotonic(), False))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)

    def show(self, position: Position) -> None:
        _LAYOUT.pack_into(self._memory, 0, position.step, position.ended_at, position.stalled)


def positions(runtime: Runtime, ranks: int) -> dict[int, Position]:
    """Local rank -> where it stands, of those that tell."""
    paths = {rank: _path(runtime, rank) for rank in range(ranks)}
    return {rank: Position(*_LAYOUT.unpack(path.read_bytes())) for rank, path in paths.items() if path.exists()}


def _path(runtime: Runtime, local_rank: int) -> Path:
    return runtime.directory / f"progress-{local_rank}"

"""Which processes can answer, in memory that the master shares with all of them."""

import mmap
import time
from enum import IntEnum

import orjson

from container import contract
from container.serve.accept import Counts
from container.serve.exchange import Response

FAILURE_BYTES = 4096


class State(IntEnum):
    """Of one serving process."""

    ABSENT = 0
    LOADING = 1
    READY = 2
    FAILED = 3


class Health:
    """One byte per process slot. The master creates it before it forks; each process writes its own byte."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.started = time.monotonic()
        # Twice the slots: during a reload the new processes load while the old ones still answer.
        self._slots = mmap.mmap(-1, 2 * processes)
        self._failure = mmap.mmap(-1, FAILURE_BYTES)
        self.connections = Counts(2 * processes)

    def claim(self) -> int:
        """A free slot, marked as loading; the master calls it before it forks."""
        slot = self._slots[:].index(State.ABSENT)
        self._slots[slot] = State.LOADING
        self.connections.set(slot, 0)
        return slot

    def mark(self, slot: int, state: State) -> None:
        self._slots[slot] = state

    def leave(self, slot: int) -> State:
        """Free the slot of a process that ended; returns what it was doing."""
        was = State(self._slots[slot])
        self._slots[slot] = State.ABSENT
        return was

    def fail(self, line: str) -> None:
        """Leave the reason why the server cannot start; the first one stands, and the master says it once."""
        if not self.failure():
            line = contract.truncate_utf8(line, FAILURE_BYTES)
            self._failure[: len(line.encode())] = line.encode()

    def failure(self) -> str:
        return self._failure[:].rstrip(b"\0").decode("utf-8", "replace")

    def forget_failure(self) -> None:
        """It did not keep the server from going on."""
        self._failure[:] = bytes(FAILURE_BYTES)

    def state(self) -> State:
        """READY once every process is, ABSENT while one of them is missing."""
        slots = self._slots[:]
        if slots.count(State.READY) >= self.processes:
            return State.READY
        for state in (State.FAILED, State.LOADING):
            if state in slots:
                return state
        return State.ABSENT

    def is_ready(self, slot: int) -> bool:
        return self._slots[slot] == State.READY

    def any_ready(self) -> bool:
        return State.READY in self._slots[:]

    def occupied(self) -> list[int]:
        """Slots of the processes that live."""
        return [slot for slot, state in enumerate(self._slots[:]) if state != State.ABSENT]

    def ready_slots(self) -> list[int]:
        """Slots of the processes that can answer."""
        return [slot for slot, state in enumerate(self._slots[:]) if state == State.READY]

    def ready(self) -> int:
        """How many processes can answer."""
        return self._slots[:].count(State.READY)

    def response(self) -> Response:
        """The answer to `/ping`: an empty 200, or 503 with what the server is waiting for."""
        state = self.state()
        if state is State.READY:
            return Response(200, b"")
        body = {
            "state": state.name.lower(),
            "elapsed_seconds": round(time.monotonic() - self.started, 1),
            "ready_processes": self.ready(),
            "processes": self.processes,
        }
        return Response(503, orjson.dumps(body), headers=(("Retry-After", "1"),))
